"""`POST /v1/embeddings`: texts in, vectors out."""

from __future__ import annotations

import base64
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from arriero.api.body import read_parameters
from arriero.api.encoding import TextEncoder, Vectors, answered, normalised
from arriero.api.encoding_parameters import EmbeddingParameters
from arriero.api.generation import Delivery, default_model, find_model, require
from arriero.api.limits import above
from arriero.api.profile import Profile
from arriero.api.request import excluded
from arriero.api.routes import Description, Routes
from arriero.errors import InvalidRequest
from arriero.pool import Pool, ServedModel

MOST_INPUTS = 2048


def embedding_routes(pool: Pool, delivery: Delivery) -> Routes:
    """The route of embeddings, for the models of `pool`."""
    routes = Routes("Embeddings")
    profile, manners = delivery.profile, delivery.manners_for(pool)
    name = pool.default_name
    defaults = default_model(pool, profile, optional=True)

    def complete(body: dict[str, Any]) -> dict[str, Any]:
        return defaults | body

    example = {"model": name, "input": ["A mule.", "A llama."]}

    @routes.post("/v1/embeddings", Description(takes=EmbeddingParameters, gives="Embeddings", example=example))
    async def create_embeddings(request: Request) -> Response:
        """Turn texts into vectors that tell how near their meanings are."""
        parameters, ignored = await read_parameters(request, EmbeddingParameters, delivery.body_limit, complete)
        model = require(await find_model(request, pool, parameters.model, profile, ignored), "embedding")
        if parameters.dimensions is not None and parameters.dimensions > model.vectors.width:
            raise above("dimensions", model.vectors.width)
        texts, tokens = _inputs(parameters)
        prompt = _prompt(model, parameters, ignored) if texts else ""
        texts = [prompt + text for text in texts]
        manner = manners.of(parameters.model)
        return await answered(request, ignored, _embed(request, model, parameters, texts, tokens, manner.profile))

    return routes


async def _embed(
    request: Request,
    model: ServedModel,
    parameters: EmbeddingParameters,
    texts: list[str],
    tokens: list[list[int]],
    profile: Profile,
) -> dict[str, Any]:
    encoder = TextEncoder(request, model, parameters)
    vectors = await (encoder.texts(texts, _called) if texts else encoder.tokens(tokens, _called))
    if parameters.dimensions is not None:
        vectors = normalised(vectors[:, : parameters.dimensions])
    data = [
        {"object": "embedding", "embedding": _written(vector, parameters.encoding_format), "index": index}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": encoder.num_tokens, "total_tokens": encoder.num_tokens}
    return {"object": "list", "data": data, "model": model.name} | ({} if profile.alpaca else {"usage": usage})


def _called(index: int) -> str:
    return f"input.{index}"


def _inputs(parameters: EmbeddingParameters) -> tuple[list[str], list[list[int]]]:
    """The texts, or else the token ids."""
    given = parameters.input
    inputs: list[Any] = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)
    if not 1 <= len(inputs) <= MOST_INPUTS:
        raise InvalidRequest(
            f"Invalid 'input': expected an array of 1 to {MOST_INPUTS} inputs, but got {len(inputs)}.",
            param="input",
            code="array_above_max_length" if inputs else "empty_array",
        )
    for index, each in enumerate(inputs):
        if not each:
            raise InvalidRequest(f"Invalid '{_called(index)}': it is empty.", param="input", code="invalid_value")
    return (inputs, []) if isinstance(inputs[0], str) else ([], inputs)


def _prompt(model: ServedModel, parameters: EmbeddingParameters, ignored: list[str]) -> str:
    """What goes before each text."""
    prompts, name = model.vectors.prompts, parameters.prompt_name
    if name is None:
        if parameters.input_type and model.vectors.prompt_for(parameters.input_type) is None:
            ignored.append("input_type")
        return model.vectors.before(parameters.input_type)
    if parameters.input_type is not None:
        raise excluded("prompt_name", "input_type")
    if name not in prompts:
        known = ", ".join(f"'{each}'" for each in prompts) or "none"
        raise InvalidRequest(
            f"Invalid 'prompt_name': the model '{model.name}' has no prompt '{name}'; it has {known}.",
            param="prompt_name",
            code="invalid_value",
        )
    return prompts[name]


def _written(vector: Vectors, encoding_format: str) -> Vectors | str:
    if encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.copy()  # in one piece, as JSON's writer wants it
