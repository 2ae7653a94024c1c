"""`POST /v1/chat/completions`: a conversation in, the assistant's next message out."""

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
from arriero.api.parameters import ChatParameters, Message, TextPart
from arriero.api.schemas import ChatCompletion, ChatCompletionChunk
from arriero.core import FinishReason
from arriero.errors import InvalidRequest
from arriero.pool import Pool, ServedModel
from arriero.wire.headers import new_id
from arriero.wire.sse import event

SERVICE_TIER = "default"


def chat_routes(pool: Pool, delivery: Delivery) -> APIRouter:
    """The route of chat completions, for the models of `pool`."""
    routes = APIRouter(tags=["Chat"])

    documentation = describe_generation(
        ChatParameters,
        ChatCompletion,
        ChatCompletionChunk,
        model=pool.list()[0].name,
        messages=[{"role": "user", "content": "Tell me a joke."}],
    )

    @routes.post("/v1/chat/completions", **documentation)
    async def create_chat_completion(request: Request) -> Response:
        """Answer a conversation."""
        parameters, ignored = await read_parameters(request, ChatParameters, delivery.body_limit)
        model = pool.get(parameters.model)
        generation = generation_request(
            model,
            parameters,
            [await _encode(model, parameters.messages)],
            id=new_id("chatcmpl-"),
            max_tokens=_max_tokens(parameters),
            param="messages",
        )
        shape = _ChatShape(generation.id, model, parameters.include_usage)
        return await respond(request, model, generation, shape, parameters, ignored, delivery)

    return routes


def _max_tokens(parameters: ChatParameters) -> int | None:
    if parameters.max_tokens is not None and parameters.max_completion_tokens is not None:
        raise InvalidRequest(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.", param="max_tokens"
        )
    return parameters.max_completion_tokens or parameters.max_tokens


async def _encode(model: ServedModel, messages: Sequence[Message]) -> list[int]:
    template = model.template
    if template is None:
        raise InvalidRequest(
            f"The model '{model.name}' has no chat template; use /v1/completions instead.", param="model"
        )
    conversation = [_for_template(index, message) for index, message in enumerate(messages)]
    if not template.knows_developers:
        for message in conversation:
            message["role"] = "system" if message["role"] == "developer" else message["role"]
    size = sum(len(message["content"]) for message in conversation)
    return await apart_if_long(size, lambda: template.encode(conversation, add_generation_prompt=True))


def _for_template(index: int, message: Message) -> dict[str, str]:
    if message.content is None:
        raise InvalidRequest(
            f"Missing required parameter: 'messages.{index}.content'.",
            param=f"messages.{index}.content",
            code="missing_required_parameter",
        )
    given = {"role": message.role, "content": _text(message.content)}
    if message.name is not None:
        given["name"] = message.name
    if message.tool_call_id is not None:
        given["tool_call_id"] = message.tool_call_id
    return given


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


class _ChatShape:
    """Chat completions and their chunks."""

    def __init__(self, id: str, model: ServedModel, include_usage: bool) -> None:
        self._fields = {
            "id": id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model.name,
            "service_tier": SERVICE_TIER,
            "system_fingerprint": model.fingerprint,
        }
        self._head, self._tail = chunk_envelope(self._fields, include_usage)
        self._after_text = b'},"logprobs":null,"finish_reason":null}' + self._tail

    def opening(self, index: int) -> bytes:
        delta = b'{"index":%d,"delta":{"role":"assistant","content":"","refusal":null' % index
        return event(self._head + delta + self._after_text)

    def delta(self, index: int, text: str) -> bytes:
        delta = b'{"index":%d,"delta":{"content":%b' % (index, orjson.dumps(text))
        return event(self._head + delta + self._after_text)

    def closing(self, index: int, reason: FinishReason) -> bytes:
        choice = b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%b"}' % (index, reason.encode())
        return event(self._head + choice + self._tail)

    def usage(self, usage: Usage) -> bytes:
        return event(orjson.dumps(self._fields | {"choices": [], "usage": usage.json()}))

    def body(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        answers: list[object] = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": choice.reason,
            }
            for index, choice in enumerate(choices)
        ]
        return orjson.dumps(self._fields | {"object": "chat.completion", "choices": answers, "usage": usage.json()})
