"""What chat and text completions share: from parameters to one `GenerationRequest`, and from its text to an answer.

An answer that is not streamed is the fold of the stream, so the two cannot disagree.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import orjson
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from arriero.api.parameters import GenerationParameters
from arriero.core import FinishReason, GenerationRequest, Sampling
from arriero.errors import ContextOverflow
from arriero.pool import ServedModel
from arriero.text.stream import Delta, Ended, stream_text
from arriero.wire.headers import IGNORED, ignored_header
from arriero.wire.sse import EventStream, while_connected

T = TypeVar("T")
LONG_TEXT = 20_000
"""Characters; a millisecond or so of tokenizing."""

Deltas = AsyncGenerator[list[Delta | Ended], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How answers go out, the same for every request."""

    body_limit: int = 16 * 2**20
    """Bytes that a request's body may have."""
    patience: float = 10.0
    """Seconds that a stream's status line waits for the first event."""
    heartbeat: float = 5.0
    """Seconds between signs of life while a stream has nothing to say."""


@dataclass(slots=True)
class Choice:
    """One complete answer."""

    text: str = ""
    reason: FinishReason = "stop"


@dataclass(slots=True)
class Usage:
    """Tokens that a request took; grows as its choices end."""

    num_choices: int
    prompt_tokens: int
    """Of every prompt once, however many choices it has."""
    completion_tokens: int = 0
    cached: dict[int, int] = field(default_factory=dict)
    """By prompt: its tokens that needed no computation."""

    def add(self, ended: Ended) -> None:
        """Count a choice that is complete."""
        self.completion_tokens += ended.num_tokens
        prompt = ended.index // self.num_choices
        # Choices of one prompt copy it from each other; what the first of them had to compute was not cached.
        self.cached[prompt] = min(ended.cached_tokens, self.cached.get(prompt, ended.cached_tokens))

    def json(self) -> dict[str, object]:
        """As the reference's `usage`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached.values()), "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


class Shape(Protocol):
    """How an endpoint words its answers; every method but the last gives whole server-sent events."""

    def opening(self, index: int) -> bytes:
        """What comes before a choice's text."""
        ...

    def delta(self, index: int, text: str) -> bytes:
        """More text of a choice."""
        ...

    def closing(self, index: int, reason: FinishReason) -> bytes:
        """A choice is complete."""
        ...

    def usage(self, usage: Usage) -> bytes:
        """The whole request's usage, after all choices."""
        ...

    def body(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The answer in one piece, for a request that is not streamed."""
        ...


def generation_request(
    model: ServedModel,
    parameters: GenerationParameters,
    prompts: Sequence[Sequence[int]],
    *,
    id: str,
    max_tokens: int | None,
    default_max_tokens: int | None = None,
    param: str,
) -> GenerationRequest:
    """What the engine is asked; `max_tokens` None means all that the context has left, or `default_max_tokens`.

    `param` names where the prompts came from. Raises `ContextOverflow` in the reference's words.
    """
    context = model.engine.context
    longest = max(map(len, prompts))
    if longest + (max_tokens or 1) > context:
        raise _overflow(context, longest, max_tokens, param)
    if max_tokens is None:
        max_tokens = min(context - longest, default_max_tokens or context)
    return GenerationRequest(
        id=id,
        prompts=tuple(map(tuple, prompts)),
        max_tokens=max_tokens,
        num_choices=parameters.n,
        sampling=Sampling(
            temperature=parameters.temperature,
            top_k=max(parameters.top_k, 0),
            top_p=parameters.top_p,
            min_p=parameters.min_p,
            seed=random.getrandbits(63) if parameters.seed is None else parameters.seed,
        ),
        end_token_ids=frozenset() if parameters.ignore_eos else model.tokenizer.end_token_ids,
        stop_strings=(parameters.stop,) if isinstance(parameters.stop, str) else tuple(parameters.stop),
    )


def _overflow(context: int, prompt: int, max_tokens: int | None, param: str) -> ContextOverflow:
    limit = f"This model's maximum context length is {context} tokens."
    if max_tokens is None or prompt >= context:
        return ContextOverflow(
            f"{limit} However, your {param} resulted in {prompt} tokens. Please reduce the length of the {param}.",
            param=param,
        )
    return ContextOverflow(
        f"{limit} However, you requested {prompt + max_tokens} tokens ({prompt} in the {param}, "
        f"{max_tokens} in the completion). Please reduce the length of the {param} or completion.",
        param=param,
    )


async def apart_if_long(size: int, work: Callable[[], T]) -> T:
    """What `work` returns; on a thread when it has so much text, in characters, that others would feel the wait."""
    return await asyncio.to_thread(work) if size > LONG_TEXT else work()


def chunk_envelope(fields: dict[str, object], include_usage: bool) -> tuple[bytes, bytes]:
    """The JSON before and after the one choice of a stream's chunk; built once, because every token needs it."""
    return orjson.dumps(fields)[:-1] + b',"choices":[', b'],"usage":null}' if include_usage else b"]}"


async def respond(
    request: Request,
    model: ServedModel,
    generation: GenerationRequest,
    shape: Shape,
    parameters: GenerationParameters,
    ignored: Sequence[str],
    delivery: Delivery,
) -> Response:
    """Answer with a stream or in one piece, as `parameters` ask; a client that leaves ends the generation."""
    usage = Usage(generation.num_choices, sum(map(len, generation.prompts)))
    deltas = stream_text(model.engine.generate(generation), model.tokenizer, stop_strings=generation.stop_strings)
    headers = {IGNORED: ignored_header(ignored)} if ignored else {}
    if parameters.stream:
        stream = EventStream(
            _frames(deltas, shape, usage, parameters.include_usage),
            [(name.encode(), value.encode()) for name, value in headers.items()],
            patience=delivery.patience,
            heartbeat=delivery.heartbeat,
        )
        return _Streamed(stream)
    choices = await while_connected(request.receive, _fold(deltas, usage, len(generation.prompts)))
    if choices is None:
        return Response(status_code=499)  # nobody reads it
    return Response(shape.body(choices, usage), headers=headers, media_type="application/json")


class _Streamed(Response):
    """An `EventStream` where FastAPI expects a response."""

    def __init__(self, stream: EventStream) -> None:
        super().__init__()
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._stream(scope, receive, send)


async def _frames(deltas: Deltas, shape: Shape, usage: Usage, include_usage: bool) -> AsyncGenerator[bytes, None]:
    opened: set[int] = set()
    async with aclosing(deltas):
        async for batch in deltas:
            frames = []
            for item in batch:
                index = item.index
                if index not in opened:
                    opened.add(index)
                    frames.append(shape.opening(index))
                if isinstance(item, Delta):
                    frames.append(shape.delta(index, item.text))
                else:
                    usage.add(item)
                    frames.append(shape.closing(index, item.reason))
            yield b"".join(frames)
    if include_usage:
        yield shape.usage(usage)


async def _fold(deltas: Deltas, usage: Usage, num_prompts: int) -> list[Choice]:
    texts: list[list[str]] = [[] for _ in range(num_prompts * usage.num_choices)]
    choices = [Choice() for _ in texts]
    async with aclosing(deltas):
        async for batch in deltas:
            for item in batch:
                if isinstance(item, Delta):
                    texts[item.index].append(item.text)
                else:
                    usage.add(item)
                    choices[item.index].reason = item.reason
    for choice, pieces in zip(choices, texts, strict=True):
        choice.text = "".join(pieces)
    return choices
