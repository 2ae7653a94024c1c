"""`GET /v1/models` and `GET /v1/models/{id}`: which models this server answers for."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from arriero.api.encoding_parameters import ENDPOINTS, encoding_table
from arriero.api.generation import may_use
from arriero.api.parameters import Parameter, table
from arriero.api.request import NOT_FOR_ENCODER_DECODERS
from arriero.api.routes import Description, Routes, json_answer
from arriero.backends.upstream import Upstream
from arriero.errors import UnknownModel
from arriero.pool import Entry, Pool, ServedModel
from arriero.text.infill import infill_of

OWNER = "arriero"
_ENDPOINTS = {"chat/completions": "chat", "completions": "completion"}
"""Endpoints, and the capability that a model needs for each."""
_ENCODING_TASKS = {"embeddings": "embedding", "rerank": "rerank", "score": "score"}


def model_routes(pool: Pool) -> Routes:
    """The routes that tell about the models of `pool`."""
    routes = Routes("Models")

    @routes.get("/v1/models", Description(gives="ModelList"))
    async def list_models(request: Request) -> Response:
        """List the models that the caller may use."""
        own = {name: _tell(entry, name, known) for entry in pool.entries for name, known in entry.listed()}
        aliases = [own[name] | {"id": alias, "parent": name} for alias, name in pool.aliases()]
        data = [each for each in [*own.values(), *aliases] if may_use(request, pool.name_of(each["id"]), each["id"])]
        for listed in await asyncio.gather(*(_describe_remote(each) for each in pool.upstreams)):
            data += [each for each in listed if may_use(request, each["id"], each["id"])]
        unique = {each["id"]: each for each in reversed(data)}
        return json_answer({"object": "list", "data": list(unique.values())[::-1]})

    @routes.get("/v1/models/{model}", Description(gives="Model | UnseenModel | RemoteModel"))
    async def retrieve_model(request: Request) -> Response:
        """Tell about one model; its id may contain slashes."""
        model = request.path_params["model"]
        if remote := pool.find_upstream(model):
            if not may_use(request, model, model):
                raise UnknownModel(model)
            return json_answer(_remote(model, remote[0]))
        entry, own = pool.entry(model), pool.name_of(model)
        if not may_use(request, own, model):
            raise UnknownModel(model)
        found = next(_tell(entry, own, known) for name, known in entry.listed() if name == own)
        return json_answer(found if model == own else found | {"id": model, "parent": own})

    return routes


async def _describe_remote(upstream: Upstream) -> list[dict[str, Any]]:
    return [_remote(name, upstream) for name in await upstream.models()]


def _remote(name: str, upstream: Upstream) -> dict[str, Any]:
    """What is known here of a model that other servers answer for."""
    return {"id": name, "object": "model", "created": upstream.created, "owned_by": "upstream"}


def _tell(entry: Entry, name: str, known: ServedModel | None) -> dict[str, Any]:
    """What is known of a model; before it was ever loaded that is not much."""
    if known:
        return _describe(known) | {"state": entry.state}
    parent = None if name == entry.name else entry.name
    return {
        "id": name,
        "object": "model",
        "created": entry.created,
        "owned_by": OWNER,
        "parent": parent,
        "state": entry.state,
    }


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
