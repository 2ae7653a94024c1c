"""Tokens of a running request to text deltas, whole characters only and nothing of a stop string."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from arriero.core import Event, Finished, FinishReason, Logprob, PromptScored, Token
from arriero.models.tokenizers.tokenizer import Tokenizer
from arriero.text.detokenize import Detokenizer
from arriero.text.stop import StopMachine

ScoredToken = tuple[int, Logprob]
"""A token's id, and how probable it was."""


@dataclass(frozen=True, slots=True)
class Delta:
    """More of a choice: text, and where log-probabilities were asked for the tokens it is made of."""

    index: int
    text: str
    """Empty only where a choice ends and tokens are left that show no more of it."""
    tokens: tuple[ScoredToken, ...] = ()
    """Those whose text is shown to its end; at a stop string also the one that was cut."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice is complete; nothing follows for this index. The counts are those of `core.Finished`."""

    index: int
    reason: FinishReason
    num_tokens: int
    cached_tokens: int
    ending: ScoredToken | None = None
    """The token that ended the choice without being text, where log-probabilities were asked for."""


class _Choice:
    """The text of one choice so far, between token boundaries and character boundaries."""

    def __init__(self, detokenizer: Detokenizer, stop: StopMachine, min_tokens: int) -> None:
        self._detokenizer = detokenizer
        self._stop = stop
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._read = 0
        """Characters of the tokens' text."""
        self._shown = 0
        """Characters given out."""
        self._held: deque[tuple[int, int, ScoredToken]] = deque()
        """The tokens not given out yet: where their text begins, how much must be shown to show it all."""

    def add(self, event: Token) -> tuple[str, list[ScoredToken]]:
        self._num_tokens += 1
        start = self._read
        text = self._add(self._detokenizer.add(event.id))
        if event.logprob:
            end = self._read + self._detokenizer.pending  # the character that it is part of is still to come
            self._held.append((start, end, (event.id, event.logprob)))
        return text, self._release() if text else []

    def end(self, event: Finished) -> tuple[str, list[ScoredToken], Ended]:
        text = self._add(self._detokenizer.flush())
        rest = self._stop.flush()
        self._shown += len(rest)
        tokens = self._release()
        if self._stop.stopped:
            tokens += [token for start, _, token in self._held if start < self._shown]
        else:
            tokens += [token for _, _, token in self._held]
        reason: FinishReason = "stop" if self._stop.stopped else event.reason
        ending = None
        if event.ending and event.ending.logprob and not self._stop.stopped:
            ending = (event.ending.id, event.ending.logprob)
        return text + rest, tokens, Ended(event.index, reason, event.num_tokens, event.cached_tokens, ending)

    def _add(self, text: str) -> str:
        self._read += len(text)
        shown = self._stop.add(text, may_stop=self._num_tokens >= self._min_tokens)
        self._shown += len(shown)
        return shown

    def _release(self) -> list[ScoredToken]:
        """The tokens whose text is shown to its end."""
        tokens = []
        while self._held and self._held[0][1] <= self._shown:
            tokens.append(self._held.popleft()[2])
        return tokens


class _Batch:
    """What became of one list of events."""

    def __init__(self) -> None:
        self._scored: list[PromptScored] = []
        self._texts: dict[int, str] = {}
        self._tokens: dict[int, list[ScoredToken]] = {}
        self._endings: list[Ended] = []

    def score(self, event: PromptScored) -> None:
        self._scored.append(event)

    def add(self, index: int, text: str, tokens: list[ScoredToken]) -> None:
        self._texts[index] = self._texts.get(index, "") + text
        self._tokens.setdefault(index, []).extend(tokens)

    def end(self, ended: Ended) -> None:
        self._endings.append(ended)

    def items(self) -> list[PromptScored | Delta | Ended]:
        deltas = [
            Delta(index, text, tuple(self._tokens[index]))
            for index, text in self._texts.items()
            if text or self._tokens[index]
        ]
        return [*self._scored, *deltas, *self._endings]


async def stream_text(
    events: AsyncIterator[list[Event]],
    tokenizer: Tokenizer,
    *,
    stop_strings: Sequence[str] = (),
    min_tokens: int = 0,
    skip_special_tokens: bool = True,
    include_stop_string: bool = False,
    watch: Callable[[Sequence[Event]], None] | None = None,
) -> AsyncGenerator[list[PromptScored | Delta | Ended], None]:
    """Text of a request's choices as it comes: the tokens' text, cut before the earliest stop string.

    The lists are never empty; each has at most one delta a choice, before all deltas the scored prompts, and after
    them the endings. A choice with a stop string ends with reason "stop" whatever the engine says; a stop string
    that is complete before the choice has `min_tokens` tokens is text like any other. With `include_stop_string`
    the text is cut behind it. `watch` sees the events before anybody sees their text. `events` is closed with this
    iterator, and when anything fails.
    """
    choices: dict[int, _Choice] = {}

    def choice_of(index: int) -> _Choice:
        if index not in choices:
            detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens, continues=True)
            stop = StopMachine(stop_strings, include_stop_string=include_stop_string)
            choices[index] = _Choice(detokenizer, stop, min_tokens)
        return choices[index]

    try:
        async for events_now in events:
            if watch:
                watch(events_now)
            batch = _Batch()
            for event in events_now:
                if isinstance(event, PromptScored):
                    batch.score(event)
                elif isinstance(event, Token):
                    batch.add(event.index, *choice_of(event.index).add(event))
                else:
                    text, tokens, ended = choice_of(event.index).end(event)
                    batch.add(event.index, text, tokens)
                    batch.end(ended)
            if items := batch.items():
                yield items
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
