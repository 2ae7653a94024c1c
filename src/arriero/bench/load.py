"""Closed- and open-loop load on one endpoint, measured request by request.

Closed loop: a number of clients, each sending its next request when its last one is answered. Open loop:
requests at the moments of a Poisson process, however long the answers take; their times count from those moments.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson

from arriero.bench import words
from arriero.bench.client import Endpoint, failure
from arriero.bench.measurement import Measurement, read
from arriero.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to send to whom. `requests` and `duration` (seconds) end the run, whichever comes first."""

    url: str
    """With or without `/v1`."""
    model: str | None = None
    """None takes the first of `/v1/models`."""
    clients: int = 1
    rate: float | None = None
    """Requests a second, on average; makes the loop an open one, without `clients`."""
    requests: int | None = None
    duration: float | None = None
    prompt_tokens: int = 100
    """Random English words; a tokenizer makes about one token of each."""
    system: str = ""
    """System prompt that all requests begin with; only in a chat."""
    max_tokens: int = 64
    endpoint: Literal["chat", "completions"] = "chat"
    stream: bool = True
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Laid over each request's body, e.g. `{"ignore_eos": true}`."""
    new_connection: bool = False
    """A connection for each request, for servers that drop idle ones."""
    api_key: str | None = None
    seed: int = 0
    """Another seed makes other prompts."""
    timeout: float = 600.0
    """Seconds after which a request counts as failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run: what each request felt, and what it took."""

    load: Load
    """As it was run, with the model's name."""
    measurements: tuple[Measurement, ...]
    """In the order in which the requests ended."""
    seconds: float
    """From the first request to the last answer."""
    generator_seconds: float
    """Processor time that this process took meanwhile."""

    @property
    def answered(self) -> tuple[Measurement, ...]:
        """The requests that did not fail."""
        return tuple(each for each in self.measurements if each.error is None)

    @property
    def errors(self) -> dict[str, int]:
        """Failed requests by kind."""
        return dict(Counter(each.error for each in self.measurements if each.error is not None))

    @property
    def output_tokens(self) -> int:
        """Of all answered requests."""
        return sum(each.output_tokens for each in self.answered)

    @property
    def output_tokens_per_second(self) -> float:
        """Over the whole run."""
        return self.output_tokens / self.seconds


def run(load: Load, on_answer: Callable[[Measurement], None] | None = None) -> Result:
    """Put the load on the endpoint and wait; see `measure`."""
    try:
        import uvloop  # Lighter than asyncio's own loop, and not made for every system.
    except ImportError:
        return asyncio.run(measure(load, on_answer))
    return uvloop.run(measure(load, on_answer))


async def measure(load: Load, on_answer: Callable[[Measurement], None] | None = None) -> Result:
    """Put the load on the endpoint; `on_answer` hears of each request as it ends.

    Failed requests are part of the result. Raises `ConfigError` when the load has no end, the address is
    malformed, or the model has to be asked for and the endpoint does not tell.
    """
    if load.requests is None and load.duration is None:
        raise ConfigError("a load needs a number of requests or a duration")
    if load.system and load.endpoint == "completions":
        raise ConfigError("a system prompt is for chats, and the load is of completions")
    endpoint = Endpoint(load.url, api_key=load.api_key, new_connection=load.new_connection)
    load = replace(load, model=load.model or await first_model(endpoint, load.url))
    measurements: list[Measurement] = []

    async def ask(index: int, due: float | None = None) -> None:
        measurement = await _request(load, endpoint, index, due)
        measurements.append(measurement)
        if on_answer is not None:
            on_answer(measurement)

    processor, start = time.process_time(), time.perf_counter()
    try:
        await (_closed(load, ask) if load.rate is None else _open(load, load.rate, ask))
    finally:
        endpoint.close()
    return Result(
        load=load,
        measurements=tuple(measurements),
        seconds=time.perf_counter() - start,
        generator_seconds=time.process_time() - processor,
    )


async def _closed(load: Load, ask: Callable[[int], Awaitable[None]]) -> None:
    indices = _indices(load)

    async def client() -> None:
        for index in indices:
            await ask(index)

    async with asyncio.TaskGroup() as clients:
        for _ in range(load.clients):
            clients.create_task(client())


async def _open(load: Load, rate: float, ask: Callable[[int, float], Coroutine[Any, Any, None]]) -> None:
    draw = random.Random(load.seed)
    due = time.perf_counter()
    async with asyncio.TaskGroup() as requests:
        for index in _indices(load):
            await asyncio.sleep(due - time.perf_counter())
            requests.create_task(ask(index, due))
            due += draw.expovariate(rate)


def _indices(load: Load) -> Iterator[int]:
    """Numbers of the requests to send; ends when it is time to stop."""
    end = None if load.duration is None else time.perf_counter() + load.duration
    index = 0
    while (load.requests is None or index < load.requests) and (end is None or time.perf_counter() < end):
        yield index
        index += 1


async def _request(load: Load, endpoint: Endpoint, index: int, due: float | None) -> Measurement:
    path, body = _body(load, index)
    return await send(endpoint, path, body, due=due, limit=load.timeout)


async def send(
    endpoint: Endpoint, path: str, body: Mapping[str, Any], *, due: float | None = None, limit: float = 600.0
) -> Measurement:
    """Send one request to a path below `/v1` and measure it; a failure is part of the measurement.

    `due` is when it ought to have been sent (`time.perf_counter`), None for now; `limit` is how many seconds it may
    take.
    """
    data = orjson.dumps(body)
    due = time.perf_counter() if due is None else due
    try:
        async with asyncio.timeout(limit):
            reply = await endpoint.post(path, data)
    except TimeoutError:
        return Measurement(due=due, latency=time.perf_counter() - due, error="timeout")
    except OSError as error:
        return Measurement(due=due, latency=time.perf_counter() - due, error=failure(error))
    return read(reply, due, time.perf_counter(), stream=bool(body.get("stream")))


def _body(load: Load, index: int) -> tuple[str, dict[str, Any]]:
    text = words.prompt(load.prompt_tokens, load.seed, index)
    body: dict[str, Any] = {"model": load.model, "max_tokens": load.max_tokens, "temperature": 0}
    if load.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if load.endpoint == "completions":
        return "/completions", body | {"prompt": text} | dict(load.extra_body)
    messages = [{"role": "user", "content": text}]
    if load.system:
        messages.insert(0, {"role": "system", "content": load.system})
    return "/chat/completions", body | {"messages": messages} | dict(load.extra_body)


async def first_model(endpoint: Endpoint, url: str) -> str:
    """What an endpoint at `url` calls the first of its models; raises `ConfigError` where it does not tell."""
    try:
        reply = await endpoint.get("/models")
        return str(orjson.loads(reply.body)["data"][0]["id"])
    except OSError as error:
        raise ConfigError(f"{url} cannot be reached: {failure(error)}") from None
    except (orjson.JSONDecodeError, LookupError, TypeError):
        raise ConfigError(f"{url} does not tell its models (HTTP {reply.status}); name one with --model") from None
