"""From a `GenerationRequest` to the HTTP answer that chat and text completions share.

An answer that is not streamed is the fold of the stream, so the two cannot disagree.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from arriero.api.limits import Limits
from arriero.api.manner import Manner, Manners, manner
from arriero.api.parameters import GenerationParameters
from arriero.api.profile import OPENAI, Profile
from arriero.api.shape import Choice, Shape, Usage
from arriero.core import Event, GenerationRequest, PromptScored
from arriero.errors import DeadlineExceeded, InvalidRequest, UnknownModel
from arriero.models.card import Task
from arriero.pool import Pool, ServedModel
from arriero.text import alpaca
from arriero.text.stream import Delta, Ended, stream_text
from arriero.wire.headers import ignored_headers
from arriero.wire.scope import caller_of, meter_of
from arriero.wire.sse import EventStream, while_connected

T = TypeVar("T")
_NAMES: dict[Task, str] = {
    "completion": "completions",
    "chat": "chat",
    "embedding": "embeddings",
    "rerank": "reranking",
    "score": "scores",
}
LONG_TEXT = 20_000
"""Characters; a millisecond or so of tokenizing."""

Deltas = AsyncGenerator[list[PromptScored | Delta | Ended], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How requests are taken and answers go out, the same for every request."""

    profile: Profile = OPENAI
    limits: Limits = field(default_factory=Limits)
    manners: Mapping[str, Manner] = field(default_factory=dict)
    """By name: of models that have their own profile, limits and defaults."""
    body_limit: int = 16 * 2**20
    """Bytes that a request's body may have."""
    patience: float = 10.0
    """Seconds that a stream's status line waits for the first event."""
    heartbeat: float = 5.0
    """Seconds between signs of life while a stream has nothing to say."""

    def manners_for(self, pool: Pool) -> Manners:
        """What the manners of all of these models are."""
        return Manners(pool, manner(self.profile, self.limits), self.manners)


async def find_model(request: Request, pool: Pool, name: str, profile: Profile, ignored: list[str]) -> ServedModel:
    """The model of that name, loaded if it is not, which may take a while.

    In the Alpaca profile any name will do, and is reported when it is not the model's. Raises `UnknownModel` also where
    the caller may not use it, and otherwise as `Pool.get`.
    """
    try:
        own = pool.name_of(name)
    except UnknownModel:
        if not profile.alpaca or not pool.list():
            raise
        ignored.append("model")
        own = name = pool.default_name  # what was asked for is nobody's name, so it opens nothing
    if not may_use(request, own, name):
        raise UnknownModel(name)
    model = await pool.get(own)
    meter_of(request.scope).model = model.name
    return model


def may_use(request: Request, own: str, name: str) -> bool:
    """Whether the caller may use a model by its own name, or by the one that it asks for."""
    caller = caller_of(request.scope)
    return caller.may_use(own) or caller.may_use(name)


def default_model(pool: Pool, profile: Profile, *, optional: bool = False) -> dict[str, str]:
    """What `model` is where a request leaves it out, if it may.

    It may where there is a default, and Alpaca's clients always may. At endpoints where others let it be `optional` it
    may where there is one model only.
    """
    anyhow = profile.alpaca or (optional and len(pool.entries) == 1)
    name = pool.default or (pool.default_name if anyhow else "")
    return {"model": name} if name else {}


def require(model: ServedModel, task: Task, asked: Task | None = None) -> ServedModel:
    """The model itself, if it can do `task`; raises `InvalidRequest` saying what it can do, and not what was asked."""
    if task in model.card.tasks:
        return model
    able = ", ".join(model.card.tasks)
    raise InvalidRequest(
        f"The model '{model.name}' cannot be asked for {_NAMES[asked or task]}; it can do: {able}.",
        param="model",
        code="unsupported_task",
    )


async def apart_if_long(size: int, work: Callable[[], T]) -> T:
    """What `work` returns; on a thread when it has so much text, in characters, that others would feel the wait."""
    return await asyncio.to_thread(work) if size > LONG_TEXT else work()


async def respond(
    request: Request,
    model: ServedModel,
    generation: GenerationRequest,
    shape: Shape,
    parameters: GenerationParameters,
    ignored: Sequence[str],
    delivery: Delivery,
    profile: Profile,
) -> Response:
    """Answer with a stream or in one piece, as `parameters` ask; a client that leaves ends the generation."""
    usage = Usage(generation.num_choices, meter_of(request.scope))
    usage.meter.queued_at = time.perf_counter()
    usage.meter.prompt_tokens = sum(map(len, generation.prompts))
    deltas = _deltas(model, generation, parameters, profile, usage)
    headers = ignored_headers(ignored)
    if parameters.stream:
        stream = EventStream(
            _frames(deltas, shape, usage, parameters),
            [(name.encode(), value.encode()) for name, value in headers.items()],
            patience=delivery.patience,
            heartbeat=delivery.heartbeat,
        )
        return _Streamed(stream)
    folded = _fold(deltas, shape, usage, len(generation.prompts))
    try:
        choices = await while_connected(request.scope, request.receive, folded)
    except InvalidRequest as error:
        _rename(error, parameters.names)
        raise
    if choices is None:
        return Response(status_code=499)  # nobody reads it
    chosen = list(_best(choices, generation.num_choices, parameters.n))
    return Response(shape.body(chosen, usage), headers=headers, media_type="application/json")


def _deltas(
    model: ServedModel,
    generation: GenerationRequest,
    parameters: GenerationParameters,
    profile: Profile,
    usage: Usage,
) -> Deltas:
    events = model.engine.generate(generation)
    deltas = stream_text(
        events if parameters.deadline is None else _in_time(events, parameters.deadline),
        model.tokenizer,
        stop_strings=generation.stop_strings,
        min_tokens=generation.min_tokens,
        skip_special_tokens=generation.skip_special_tokens,
        include_stop_string=parameters.include_stop_str_in_output,
        watch=usage.watch,
    )
    # The offsets of log-probabilities count every character.
    return alpaca.strip(deltas) if profile.alpaca and parameters.alternatives is None else deltas


def late(seconds: float | None) -> DeadlineExceeded:
    """The error for what took longer than its caller wanted to wait."""
    return DeadlineExceeded(f"The answer was not complete within {seconds:g} s, the deadline.")


async def _in_time(events: AsyncIterator[list[Event]], seconds: float) -> AsyncIterator[list[Event]]:
    """The same events; raises `DeadlineExceeded` where they are not complete in time, which gives up the rest."""
    end = asyncio.get_running_loop().time() + seconds
    try:
        while True:
            try:
                async with asyncio.timeout_at(end) as limit:
                    news = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise late(seconds) from None
            yield news
            if limit.expired():  # the engine has told what it sampled until then
                raise late(seconds)
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


def _best(choices: Sequence[Choice], num_candidates: int, n: int) -> Iterator[Choice]:
    """Of each prompt's candidates the `n` that are most probable by the token, the best first."""
    for start in range(0, len(choices), num_candidates):
        candidates = choices[start : start + num_candidates]
        if n < num_candidates:
            candidates = sorted(candidates, key=lambda choice: choice.mean_logprob, reverse=True)[:n]
        yield from candidates


class _Streamed(Response):
    """An `EventStream` where FastAPI expects a response."""

    def __init__(self, stream: EventStream) -> None:
        super().__init__()
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._stream(scope, receive, send)


def _rename(error: InvalidRequest, names: Mapping[str, str]) -> None:
    """Have an error name its parameter as the caller does; the engine has its own names."""
    error.param = names.get(error.param or "", error.param)


async def _frames(
    deltas: Deltas, shape: Shape, usage: Usage, parameters: GenerationParameters
) -> AsyncGenerator[bytes, None]:
    opened: set[int] = set()
    try:
        async with aclosing(deltas):
            async for batch in deltas:
                frames = b""
                for item in batch:
                    if isinstance(item, PromptScored):
                        shape.score(item)
                        continue
                    if item.index not in opened:
                        opened.add(item.index)
                        frames += shape.opening(item.index)
                    if isinstance(item, Delta):
                        frames += shape.delta(item)
                    else:
                        frames += shape.closing(item)
                if frames:
                    yield frames
    except InvalidRequest as error:
        _rename(error, parameters.names)
        raise
    if parameters.include_usage:
        yield shape.usage(usage)


async def _fold(deltas: Deltas, shape: Shape, usage: Usage, num_prompts: int) -> list[Choice]:
    pieces: list[list[Delta]] = [[] for _ in range(num_prompts * usage.num_choices)]
    choices = [Choice() for _ in pieces]
    async with aclosing(deltas):
        async for batch in deltas:
            for item in batch:
                if isinstance(item, PromptScored):
                    shape.score(item)
                elif isinstance(item, Delta):
                    pieces[item.index].append(item)
                else:
                    choices[item.index].reason = item.reason
                    choices[item.index].ending = item.ending
    for choice, parts in zip(choices, pieces, strict=True):
        choice.text = "".join(part.text for part in parts)
        choice.tokens = tuple(token for part in parts for token in part.tokens)
    return choices
