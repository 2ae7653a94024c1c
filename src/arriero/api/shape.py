"""How answers are worded: what all endpoints and both profiles have in common."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from arriero.api.profile import Profile
from arriero.core import Event, Finished, FinishReason, Meter, PromptScored, Token
from arriero.pool import ServedModel
from arriero.text.stream import Delta, Ended, ScoredToken
from arriero.wire.sse import event


@dataclass(slots=True)
class Choice:
    """One complete answer."""

    text: str = ""
    reason: FinishReason = "stop"
    tokens: tuple[ScoredToken, ...] = ()
    ending: ScoredToken | None = None
    """What ended it without being text."""

    @property
    def mean_logprob(self) -> float:
        """How good it is among others, its ending included; an answer without tokens is the worst."""
        tokens = self.tokens if self.ending is None else (*self.tokens, self.ending)
        return sum(score.value for _, score in tokens) / len(tokens) if tokens else float("-inf")


@dataclass(slots=True)
class Usage:
    """Tokens that a request takes, counted on its meter as they come."""

    num_choices: int
    meter: Meter
    """Of every prompt it has the tokens once, however many choices it has."""
    sampled: dict[int, int] = field(default_factory=dict)
    """By choice: its tokens so far."""
    cached: dict[int, int] = field(default_factory=dict)
    """By prompt: its tokens that needed no computation."""

    def watch(self, events: Sequence[Event]) -> None:
        """Count what an engine tells."""
        meter, sampled = self.meter, self.sampled
        for each in events:
            if isinstance(each, Token):
                sampled[each.index] = sampled.get(each.index, 0) + 1
                meter.completion_tokens += 1
            elif isinstance(each, Finished):
                meter.completion_tokens += each.num_tokens - self.sampled.get(each.index, 0)
                prompt = each.index // self.num_choices
                # Choices of one prompt copy it from each other; what the first of them had to compute was not cached.
                self.cached[prompt] = min(each.cached_tokens, self.cached.get(prompt, each.cached_tokens))
                meter.cached_tokens = sum(self.cached.values())
                meter.queue_seconds = each.queue_seconds
        if meter.first_token_at is None and meter.completion_tokens:
            meter.first_token_at = time.perf_counter()

    def json(self) -> dict[str, object]:
        """As the reference's `usage`."""
        meter = self.meter
        return {
            "prompt_tokens": meter.prompt_tokens,
            "completion_tokens": meter.completion_tokens,
            "total_tokens": meter.prompt_tokens + meter.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": meter.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


_MARK = "\U0010fffd"
"""Stands for the text of an event that is laid out beforehand; nothing else in one reads like it."""


class Shape(ABC):
    """Words the answer to one request, in one piece or as whole server-sent events.

    An Alpaca answer leaves out usage, finish reason, fingerprint, and log-probabilities that are null.
    """

    def __init__(
        self, profile: Profile, model: ServedModel, *, id: str, object: str, include_usage: bool, **more: Any
    ) -> None:
        """`more` are fields beside the usual ones."""
        self._terse = profile.alpaca
        self._fields = {"id": id, "object": object, "created": int(time.time()), "model": model.name}
        if not self._terse:
            self._fields |= {**more, "system_fingerprint": model.fingerprint}
        # Built once, because every token needs it.
        self._head = orjson.dumps(self._fields)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}' if include_usage else b"]}"
        self._frames: dict[int, tuple[bytes, bytes]] = {}
        """By choice: an event of nothing but text, without its text."""

    @abstractmethod
    def score(self, scored: PromptScored) -> None:
        """Take a prompt's log-probabilities, before anything else of its choices."""

    @abstractmethod
    def opening(self, index: int) -> bytes:
        """What comes before a choice's text."""

    def delta(self, delta: Delta) -> bytes:
        """More of a choice."""
        if delta.tokens:
            return self._delta(delta)
        frame = self._frames.get(delta.index)
        if frame is None:
            before, mark, after = self._delta(Delta(delta.index, _MARK)).partition(orjson.dumps(_MARK))
            assert mark
            frame = self._frames[delta.index] = (before, after)
        return frame[0] + orjson.dumps(delta.text) + frame[1]

    @abstractmethod
    def _delta(self, delta: Delta) -> bytes:
        """The event of a delta."""

    @abstractmethod
    def closing(self, ended: Ended) -> bytes:
        """A choice is complete."""

    def usage(self, usage: Usage) -> bytes:
        """The whole request's usage, after all choices."""
        return event(orjson.dumps(self._fields | {"choices": [], "usage": usage.json()}))

    @abstractmethod
    def body(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The answer in one piece, for a request that is not streamed."""

    def _event(self, choice: dict[str, Any]) -> bytes:
        return event(self._head + orjson.dumps(choice) + self._tail)

    def _choice(
        self, index: int, said: dict[str, Any], logprobs: object = None, reason: FinishReason | None = None
    ) -> dict[str, Any]:
        if self._terse:
            return {"index": index, **said} | ({} if logprobs is None else {"logprobs": logprobs})
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": reason}

    def _body(self, choices: Sequence[dict[str, Any]], usage: Usage, **more: Any) -> bytes:
        counts = {} if self._terse else {"usage": usage.json()}
        return orjson.dumps(self._fields | {"choices": choices} | counts | more)
