"""Tokens of a running request to text deltas, whole characters only and nothing of a stop string."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass

from arriero.core import Event, Finished, FinishReason, Token
from arriero.models.tokenizer import Tokenizer
from arriero.text.detokenize import Detokenizer
from arriero.text.stop import StopMachine


@dataclass(frozen=True, slots=True)
class Delta:
    """More text of a choice; never empty."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice is complete; nothing follows for this index. The counts are those of `core.Finished`."""

    index: int
    reason: FinishReason
    num_tokens: int
    cached_tokens: int


class _Choice:
    """The text of one choice so far, between token boundaries and character boundaries."""

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str], skip_special_tokens: bool) -> None:
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens, continues=True)
        self._stop = StopMachine(stop_strings)

    def add(self, token: int) -> str:
        return self._stop.add(self._detokenizer.add(token))

    def end(self, event: Finished) -> tuple[str, Ended]:
        rest = self._stop.add(self._detokenizer.flush()) + self._stop.flush()
        reason: FinishReason = "stop" if self._stop.stopped else event.reason
        return rest, Ended(event.index, reason, event.num_tokens, event.cached_tokens)


async def stream_text(
    events: AsyncIterator[list[Event]],
    tokenizer: Tokenizer,
    *,
    stop_strings: Sequence[str] = (),
    skip_special_tokens: bool = True,
) -> AsyncGenerator[list[Delta | Ended], None]:
    """Text of a request's choices as it comes: the tokens' text, cut before the earliest stop string.

    The lists are never empty; each has at most one delta a choice, and the endings after all deltas. A choice
    with a stop string ends with reason "stop" whatever the engine says. `events` is closed with this iterator,
    and when anything fails.
    """
    choices: dict[int, _Choice] = {}
    try:
        async for batch in events:
            texts: dict[int, str] = {}
            endings: list[Ended] = []
            for event in batch:
                choice = choices.get(event.index)
                if choice is None:
                    choice = choices[event.index] = _Choice(tokenizer, stop_strings, skip_special_tokens)
                if isinstance(event, Token):
                    text = choice.add(event.id)
                else:
                    text, ended = choice.end(event)
                    endings.append(ended)
                texts[event.index] = texts.get(event.index, "") + text
            deltas = [Delta(index, text) for index, text in texts.items() if text]
            if deltas or endings:
                yield [*deltas, *endings]
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
