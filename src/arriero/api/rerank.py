"""`POST /v1/rerank` and `POST /v1/score`: how near texts are to each other.

A model with a classification head reads both texts together; any other that embeds compares their vectors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from arriero.api.body import read_parameters
from arriero.api.encoding import TextEncoder, Vectors, answered, normalised
from arriero.api.encoding_parameters import RerankParameters, ScoreParameters
from arriero.api.generation import Delivery, default_model, find_model, require
from arriero.api.routes import Description, Routes
from arriero.errors import InvalidRequest
from arriero.pool import Pool, ServedModel
from arriero.wire.headers import new_id


def rerank_routes(pool: Pool, delivery: Delivery) -> Routes:
    """The routes that compare texts, for the models of `pool`."""
    routes = Routes("Reranking")
    profile = delivery.profile
    name = pool.default_name
    defaults = default_model(pool, profile, optional=True)

    def complete(body: dict[str, Any]) -> dict[str, Any]:
        return defaults | body

    example = {"model": name, "query": "pack animals", "documents": ["A mule.", "A ship."]}

    @routes.post("/v1/rerank", Description(takes=RerankParameters, gives="Reranking", example=example))
    async def rerank(request: Request) -> Response:
        """Sort documents by their relevance to a query."""
        parameters, ignored = await read_parameters(request, RerankParameters, delivery.body_limit, complete)
        model = require(await find_model(request, pool, parameters.model, profile, ignored), "rerank")
        return await answered(request, ignored, _rerank(request, model, parameters))

    pair = {"model": name, "text_1": "A mule.", "text_2": ["A llama."]}

    @routes.post("/v1/score", Description(takes=ScoreParameters, gives="Scores", example=pair))
    async def score(request: Request) -> Response:
        """Tell how near texts are to each other, pair by pair."""
        parameters, ignored = await read_parameters(request, ScoreParameters, delivery.body_limit, complete)
        model = require(await find_model(request, pool, parameters.model, profile, ignored), "score")
        return await answered(request, ignored, _score(request, model, parameters))

    return routes


async def _rerank(request: Request, model: ServedModel, parameters: RerankParameters) -> dict[str, Any]:
    texts = [each if isinstance(each, str) else each.text for each in parameters.documents]
    encoder = TextEncoder(request, model, parameters)
    scores = await _relevance(encoder, parameters.query, texts)
    order = (-scores).argsort(kind="stable")[: parameters.top_n]
    results = [
        {"index": int(index), "relevance_score": scores[index]}
        | ({"document": {"text": texts[index]}} if parameters.return_documents else {})
        for index in order
    ]
    return {
        "id": new_id("rerank-"),
        "object": "list",
        "model": model.name,
        "results": results,
        "usage": _usage(encoder),
    }


async def _relevance(encoder: TextEncoder, query: str, texts: Sequence[str]) -> Vectors:
    def called(index: int) -> str:
        return f"documents.{index}"

    if "embedding" not in encoder.model.card.tasks:
        return await encoder.pairs([(query, text) for text in texts], called)
    before = encoder.model.vectors.before
    before_query, before_text = before("query"), before("document")
    vectors = await encoder.texts(
        [before_query + query, *(before_text + text for text in texts)],
        lambda index: called(index - 1) if index else "query",
    )
    vectors = normalised(vectors)
    nearness: Vectors = vectors[1:] @ vectors[0]
    return nearness


async def _score(request: Request, model: ServedModel, parameters: ScoreParameters) -> dict[str, Any]:
    firsts, seconds = ([each] if isinstance(each, str) else each for each in (parameters.text_1, parameters.text_2))
    if len(firsts) not in (1, len(seconds)):
        raise InvalidRequest(
            f"Invalid 'text_1': expected one text, or {len(seconds)} as in 'text_2', but got {len(firsts)}.",
            param="text_1",
            code="invalid_value",
        )
    encoder = TextEncoder(request, model, parameters)
    scores = await _nearness(encoder, firsts, seconds)
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
    return {
        "id": new_id("score-"),
        "object": "list",
        "created": int(time.time()),
        "model": model.name,
        "data": data,
        "usage": _usage(encoder),
    }


async def _nearness(encoder: TextEncoder, firsts: list[str], seconds: list[str]) -> Vectors:
    if "embedding" not in encoder.model.card.tasks:
        pairs = zip(firsts * (len(seconds) // len(firsts)), seconds, strict=True)
        return await encoder.pairs(list(pairs), lambda index: f"text_2.{index}")
    before = encoder.model.vectors.before()
    split = len(firsts)
    vectors = await encoder.texts(
        [before + text for text in (*firsts, *seconds)],
        lambda index: f"text_1.{index}" if index < split else f"text_2.{index - split}",
    )
    vectors = normalised(vectors)
    nearness: Vectors = (vectors[:split] * vectors[split:]).sum(axis=1)
    return nearness


def _usage(encoder: TextEncoder) -> dict[str, int]:
    return {"prompt_tokens": encoder.num_tokens, "total_tokens": encoder.num_tokens}
