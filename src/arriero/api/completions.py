"""`POST /v1/completions`: a text in, its continuation out."""

from __future__ import annotations

import time
from collections.abc import Sequence

import orjson
from fastapi import APIRouter, Request, Response

from arriero.api.body import read_parameters
from arriero.api.documentation import describe_generation
from arriero.api.generation import (
    Choice,
    Delivery,
    Usage,
    apart_if_long,
    chunk_envelope,
    generation_request,
    respond,
)
from arriero.api.parameters import CompletionParameters
from arriero.api.schemas import Completion
from arriero.core import FinishReason
from arriero.errors import InvalidRequest
from arriero.models.tokenizer import Tokenizer
from arriero.pool import Pool, ServedModel
from arriero.wire.headers import new_id
from arriero.wire.sse import event

DEFAULT_MAX_TOKENS = 4096

Prompt = str | list[int]


def completion_routes(pool: Pool, delivery: Delivery) -> APIRouter:
    """The route of text completions, for the models of `pool`."""
    routes = APIRouter(tags=["Completions"])

    documentation = describe_generation(
        CompletionParameters,
        Completion,
        Completion,
        model=pool.list()[0].name,
        prompt="Once upon a time",
        max_tokens=32,
    )

    @routes.post("/v1/completions", **documentation)
    async def create_completion(request: Request) -> Response:
        """Continue one text or several."""
        parameters, ignored = await read_parameters(request, CompletionParameters, delivery.body_limit)
        model = pool.get(parameters.model)
        prompts = _prompts(parameters)
        size = sum(map(len, prompts))
        generation = generation_request(
            model,
            parameters,
            await apart_if_long(size, lambda: [_encode(model.tokenizer, prompt) for prompt in prompts]),
            id=new_id("cmpl-"),
            max_tokens=parameters.max_tokens,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            param="prompt",
        )
        shape = _CompletionShape(generation.id, model, parameters.include_usage)
        return await respond(request, model, generation, shape, parameters, ignored, delivery)

    return routes


def _prompts(parameters: CompletionParameters) -> list[Prompt]:
    prompt = parameters.prompt
    if prompt == []:
        raise InvalidRequest("Invalid 'prompt': expected at least one prompt.", param="prompt", code="empty_array")
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return prompt  # type: ignore[return-value]  # its elements are all of the first one's type


def _encode(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    if isinstance(prompt, list):
        if not prompt or min(prompt) < 0 or max(prompt) >= tokenizer.vocab_size:
            raise InvalidRequest(
                f"Invalid 'prompt': expected token ids from 0 to {tokenizer.vocab_size - 1}, at least one.",
                param="prompt",
                code="invalid_value",
            )
        return prompt
    return tokenizer.encode(prompt) or [_document_start(tokenizer)]


def _document_start(tokenizer: Tokenizer) -> int:
    """What stands for an empty prompt: the token that parts documents from each other in training."""
    if tokenizer.bos_token_id is not None:
        return tokenizer.bos_token_id
    if tokenizer.end_token_ids:
        return min(tokenizer.end_token_ids)
    raise InvalidRequest("This model cannot answer an empty prompt.", param="prompt", code="invalid_value")


class _CompletionShape:
    """Text completions; a chunk of a stream has the shape of the whole."""

    def __init__(self, id: str, model: ServedModel, include_usage: bool) -> None:
        self._fields = {
            "id": id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }
        self._head, self._tail = chunk_envelope(self._fields, include_usage)
        self._after_text = b',"logprobs":null,"finish_reason":null}' + self._tail

    def opening(self, index: int) -> bytes:
        return b""

    def delta(self, index: int, text: str) -> bytes:
        choice = b'{"index":%d,"text":%b' % (index, orjson.dumps(text))
        return event(self._head + choice + self._after_text)

    def closing(self, index: int, reason: FinishReason) -> bytes:
        choice = b'{"index":%d,"text":"","logprobs":null,"finish_reason":"%b"}' % (index, reason.encode())
        return event(self._head + choice + self._tail)

    def usage(self, usage: Usage) -> bytes:
        return event(orjson.dumps(self._fields | {"choices": [], "usage": usage.json()}))

    def body(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        answers: list[object] = [
            {"index": index, "text": choice.text, "logprobs": None, "finish_reason": choice.reason}
            for index, choice in enumerate(choices)
        ]
        return orjson.dumps(self._fields | {"choices": answers, "usage": usage.json()})
