"""`GET /v1/models` and `GET /v1/models/{id}`: which models this server answers for."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from arriero.api.documentation import ERRORS
from arriero.api.encoding_parameters import ENDPOINTS, encoding_table
from arriero.api.parameters import Parameter, table
from arriero.api.request import NOT_FOR_ENCODER_DECODERS
from arriero.api.schemas import Model, ModelList
from arriero.errors import UnknownModel
from arriero.pool import Pool, ServedModel
from arriero.text.infill import infill_of
from arriero.wire.scope import caller_of

OWNER = "arriero"
_ENDPOINTS = {"chat/completions": "chat", "completions": "completion"}
"""Endpoints, and the capability that a model needs for each."""
_ENCODING_TASKS = {"embeddings": "embedding", "rerank": "rerank", "score": "score"}


def model_routes(pool: Pool) -> APIRouter:
    """The routes that tell about the models of `pool`."""
    routes = APIRouter(tags=["Models"])

    @routes.get("/v1/models", response_model=ModelList)
    async def list_models(request: Request) -> dict[str, Any]:
        """List the models that the caller may use."""
        caller = caller_of(request.scope)
        return {"object": "list", "data": [_describe(model) for model in pool.list() if caller.may_use(model.name)]}

    @routes.get("/v1/models/{model:path}", response_model=Model, responses={"4XX": ERRORS[404]})
    async def retrieve_model(model: str, request: Request) -> dict[str, Any]:
        """Tell about one model; its id may contain slashes."""
        found = pool.get(model)
        caller = caller_of(request.scope)
        if not (caller.may_use(found.name) or caller.may_use(model)):
            raise UnknownModel(model)
        return _describe(found)

    return routes


def _describe(model: ServedModel) -> dict[str, Any]:
    infills = infill_of(model.tokenizer) is not None
    capabilities = [*model.card.tasks, *(["infill"] if infills else [])]

    def usable(parameter: Parameter) -> bool:
        if model.engine.source_context and parameter.name in NOT_FOR_ENCODER_DECODERS:
            return False
        return parameter.name != "suffix" or infills

    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": OWNER,
        "parent": model.parent,
        "context_length": model.engine.context,
        "capabilities": capabilities,
        "supported_parameters": {
            endpoint: [row.name for row in table() if endpoint in row.endpoints and row.mark is None and usable(row)]
            for endpoint in _ENDPOINTS
            if _ENDPOINTS[endpoint] in capabilities
        }
        | {
            endpoint: [row.name for row in encoding_table(endpoint) if row.mark is None]
            for endpoint in ENDPOINTS
            if _ENCODING_TASKS[endpoint] in capabilities
        },
        "card": {
            "context": model.engine.context,
            "parameters": model.card.parameters,
            "family": model.card.family,
            "source_format": model.card.source_format,
            "weights": model.card.weights,
            "invariant": model.card.invariant,
            "engine": model.card.engine,
            "source_context": model.engine.source_context,
        },
    }
