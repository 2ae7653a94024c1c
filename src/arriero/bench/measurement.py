"""What one request felt, read from its reply."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from arriero.bench.client import Reply


@dataclass(slots=True, kw_only=True)
class Measurement:
    """Times in seconds since the request was due."""

    due: float
    """On the `time.perf_counter` clock."""
    latency: float
    error: str | None = None
    """Kind of failure; the figures below then say nothing."""
    first_token: float | None = None
    """Until the first piece of text arrived; None when not streamed, or when there was no text."""
    gaps: list[float] = field(default_factory=list)
    """Between one piece of text and the next."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    from_usage: bool = True
    """False when the server sent no `usage`, and `output_tokens` is a count of the pieces."""
    finish_reason: str | None = None
    text: str = ""
    """The answer; of the first choice where there are several."""

    @property
    def time_per_token(self) -> float | None:
        """Seconds per output token after the first."""
        if self.first_token is None or self.output_tokens < 2:
            return None
        return (self.latency - self.first_token) / (self.output_tokens - 1)


def read(reply: Reply, due: float, end: float, *, stream: bool) -> Measurement:
    """Measure a reply to a request that was due at `due` and over at `end` (`time.perf_counter`)."""
    measurement = Measurement(due=due, latency=end - due)
    try:
        if reply.status != 200:
            measurement.error = f"HTTP {reply.status}{_code(reply.body)}"
        elif stream:
            _read_stream(reply, due, measurement)
        else:
            _read_body(orjson.loads(reply.body), measurement)
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        measurement.error = "answer malformed"
    return measurement


def _read_body(answer: dict[str, Any], measurement: Measurement) -> None:
    choice = answer["choices"][0]
    measurement.finish_reason = choice.get("finish_reason")
    measurement.text = _text(choice.get("message"), choice)
    _count(answer.get("usage"), 1, measurement)


def _read_stream(reply: Reply, due: float, measurement: Measurement) -> None:
    times: list[float] = []
    texts: list[str] = []
    usage = None
    complete = False
    for moment, data in _events(reply.pieces):
        if data == b"[DONE]":
            complete = True
            continue
        event = orjson.loads(data)
        if "error" in event:
            measurement.error = "error in the stream"
            return
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            measurement.finish_reason = choice.get("finish_reason") or measurement.finish_reason
            if text := _text(choice.get("delta"), choice):
                times.append(moment)
                if not choice.get("index"):
                    texts.append(text)
    if not complete:
        measurement.error = "stream cut short"
        return
    if times:
        measurement.first_token = times[0] - due
        measurement.gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    measurement.text = "".join(texts)
    _count(usage, len(times), measurement)


def _events(pieces: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """The `data` of every server-sent event, with the time when its line was complete.

    OpenAI's events are one line of data each: https://platform.openai.com/docs/api-reference/chat-streaming
    """
    rest = b""
    for moment, data in pieces:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield moment, line[5:].strip()


def _text(message: dict[str, Any] | None, choice: dict[str, Any]) -> str:
    """What a chat's message or its delta says, or a completion's choice, which has no message."""
    if message is None:
        return choice.get("text") or ""
    return message.get("content") or message.get("reasoning_content") or ""


def _count(usage: dict[str, Any] | None, num_pieces: int, measurement: Measurement) -> None:
    measurement.from_usage = usage is not None
    measurement.prompt_tokens = usage["prompt_tokens"] if usage else 0
    measurement.output_tokens = usage["completion_tokens"] if usage else num_pieces


def _code(body: bytes) -> str:
    """The `code` or `type` of an OpenAI error body, to tell one kind of failure from another."""
    try:
        error = orjson.loads(body)["error"]
        return f" {error.get('code') or error['type']}"
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return ""
