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


@dataclass(slots=True)
class Delta:
    """More of a choice: text, and where log-probabilities were asked for the tokens it is made of.

    Nobody changes one. It is not frozen because there are so many, see `core.Token`.
    """

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

    def __init__(self, detokenizer: Detokenizer, stop: StopMachine | None, min_tokens: int) -> None:
        """`stop` is None where there are no stop strings."""
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
        self._texts: list[str] = []
        self._tokens: list[ScoredToken] = []

    def add(self, event: Token) -> None:
        text = self._detokenizer.add(event.id)
        if event.logprob is None and self._stop is None:  # most answers; nobody asks where in the text they are
            self._texts.append(text)
            return
        self._num_tokens += 1
        start = self._read
        shown = self._show(text)
        if event.logprob:
            end = self._read + self._detokenizer.pending  # the character that it is part of is still to come
            self._held.append((start, end, (event.id, event.logprob)))
        if shown:
            self._release()

    def end(self, event: Finished) -> Ended:
        self._show(self._detokenizer.flush())
        stopped = False
        if self._stop:
            rest = self._stop.flush()
            self._shown += len(rest)
            self._texts.append(rest)
            stopped = self._stop.stopped
        self._release()
        self._tokens += [token for start, _, token in self._held if start < self._shown or not stopped]
        ending = None
        if event.ending and event.ending.logprob and not stopped:
            ending = (event.ending.id, event.ending.logprob)
        return Ended(event.index, "stop" if stopped else event.reason, event.num_tokens, event.cached_tokens, ending)

    def take(self, index: int) -> Delta | None:
        """What is new since the last time."""
        text = self._texts[0] if len(self._texts) == 1 else "".join(self._texts)
        self._texts.clear()
        if not self._tokens:
            return Delta(index, text) if text else None
        tokens, self._tokens = tuple(self._tokens), []
        return Delta(index, text, tokens)

    def _show(self, text: str) -> str:
        self._read += len(text)
        shown = self._stop.add(text, may_stop=self._num_tokens >= self._min_tokens) if self._stop else text
        self._shown += len(shown)
        self._texts.append(shown)
        return shown

    def _release(self) -> None:
        """Give out the tokens whose text is shown to its end."""
        while self._held and self._held[0][1] <= self._shown:
            self._tokens.append(self._held.popleft()[2])


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
        detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens, continues=True)
        stop = StopMachine(stop_strings, include_stop_string=include_stop_string) if stop_strings else None
        choices[index] = choice = _Choice(detokenizer, stop, min_tokens)
        return choice

    def items_of(events: Sequence[Event]) -> list[PromptScored | Delta | Ended]:
        scored: list[PromptScored | Delta | Ended] = []
        changed: dict[int, _Choice] = {}
        endings: list[Ended] = []
        for event in events:
            if isinstance(event, PromptScored):
                scored.append(event)
                continue
            choice = changed.get(event.index)
            if choice is None:
                choice = changed[event.index] = choices.get(event.index) or choice_of(event.index)
            if isinstance(event, Token):
                choice.add(event)
            else:
                endings.append(choice.end(event))
        deltas = [delta for index, choice in changed.items() if (delta := choice.take(index))]
        return [*scored, *deltas, *endings]

    try:
        async for events_now in events:
            if watch:
                watch(events_now)
            if items := items_of(events_now):
                yield items
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
