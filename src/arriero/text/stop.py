"""Stop strings: found at the same token by the engine, which ends the choice, and by the stream, which cuts the text.

Of several stop strings the one that begins earliest in the text wins, wherever token boundaries fall. A stop
string that is complete therefore waits while another, begun before it, may still be completed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Self

from arriero.core import Constraint, ConstraintFactory, GenerationRequest
from arriero.errors import InvalidRequest
from arriero.models.tokenizers.tokenizer import Tokenizer
from arriero.text.detokenize import Detokenizer


class _Pattern:
    """One stop string, compiled after Knuth, Morris and Pratt: no character of the text is looked at twice."""

    __slots__ = ("_fallback", "_text", "length")

    def __init__(self, text: str) -> None:
        if not text:
            raise InvalidRequest("A stop string must have at least one character.", param="stop")
        self._text = text
        self.length = len(text)
        self._fallback = [0] * len(text)
        for end in range(1, len(text)):
            self._fallback[end] = self._advance(self._fallback[end - 1], text[end])

    def read(self, matched: int, text: str) -> tuple[int, int]:
        """Go on from a text that ends with the first `matched` < length characters of the pattern.

        Returns how many it ends with after `text`, and the characters read: fewer than all when the pattern
        is complete before.
        """
        skipped = 0 if matched else text.find(self._text[0])
        if skipped < 0:  # by far the most frequent case
            return 0, len(text)
        for num_read in range(skipped + 1, len(text) + 1):
            matched = self._advance(matched, text[num_read - 1])
            if matched == self.length:
                return matched, num_read
        return matched, len(text)

    def overlap(self) -> int:
        """How much of the next occurrence a complete one may already be."""
        return self._fallback[-1]

    def _advance(self, matched: int, character: str) -> int:
        while matched and self._text[matched] != character:
            matched = self._fallback[matched - 1]
        return matched + (self._text[matched] == character)


class StopMachine:
    """Reads text and gives it back as soon as it cannot be part of a stop string, until one is found.

    The stop string itself is given back with `include_stop_string` only. Raises `InvalidRequest` for an empty stop
    string.
    """

    def __init__(self, stop_strings: Iterable[str], *, include_stop_string: bool = False) -> None:
        self._include = include_stop_string
        self._matched = {_Pattern(text): 0 for text in dict.fromkeys(stop_strings)}
        """The stop strings not seen yet, each with how much of it the text ends with."""
        self._found: tuple[int, int] | None = None
        """Where the earliest complete stop string begins and ends; of several that begin there, the shortest."""
        self._length = 0
        """Characters read."""
        self._released = 0
        """Characters given back."""
        self._held = ""
        """The characters between these two."""
        self.stopped = False
        """A stop string was found; nothing is given back any more."""

    def add(self, text: str, *, may_stop: bool = True) -> str:
        """Read on; returns what has become certain to belong to the answer.

        Stop strings that this text completes are part of the answer unless `may_stop`.
        """
        if self.stopped:
            return ""
        if not (self._matched or self._found or self._held):  # most answers have no stop strings
            self._length = self._released = self._length + len(text)
            return text
        self._held += text
        for pattern in tuple(self._matched):
            self._read(pattern, text, may_stop)
        self._length += len(text)
        undecided = self._length - max(self._matched.values(), default=0)
        if self._found and self._found[0] <= undecided:
            return self._stop(self._found)
        return self._release(undecided)

    def flush(self) -> str:
        """The text is over: returns the rest of it, or ends it at a stop string that was complete but waiting."""
        if self._found and not self.stopped:
            return self._stop(self._found)
        return self._release(self._length)

    def copy(self) -> Self:
        """An independent machine in the same state."""
        other = copy.copy(self)
        other._matched = dict(self._matched)
        return other

    def _read(self, pattern: _Pattern, text: str, may_stop: bool) -> None:
        matched, num_read = pattern.read(self._matched[pattern], text)
        while matched == pattern.length and not may_stop:
            matched, more = pattern.read(pattern.overlap(), text[num_read:])
            num_read += more
        self._matched[pattern] = matched
        if matched == pattern.length:
            del self._matched[pattern]  # no later occurrence of it can be the earliest
            end = self._length + num_read
            found = (end - pattern.length, end)
            self._found = found if self._found is None else min(found, self._found)

    def _stop(self, found: tuple[int, int]) -> str:
        text = self._release(found[self._include])
        self.stopped = True
        self._released, self._held = self._length, ""
        return text

    def _release(self, end: int) -> str:
        size = end - self._released
        text, self._held = self._held[:size], self._held[size:]
        self._released = end
        return text


class _StopConstraint:
    """Watches one choice on the engine's side."""

    def __init__(self, detokenizer: Detokenizer, machine: StopMachine, least: int) -> None:
        self._detokenizer = detokenizer
        self._machine = machine
        self._least = least
        """Tokens that must have come when it stops."""

    def accept(self, token: int) -> bool:
        self._least -= 1
        self._machine.add(self._detokenizer.add(token), may_stop=self._least <= 0)
        return self._machine.stopped

    def copy(self) -> Constraint:
        return _StopConstraint(self._detokenizer.copy(), self._machine.copy(), self._least)


def stop_constraints(tokenizer: Tokenizer) -> ConstraintFactory:
    """What an engine needs to end a choice at its stop strings, because below this room nobody sees text."""

    def compile_request(request: GenerationRequest) -> Constraint | None:
        if not request.stop_strings:
            return None
        detokenizer = Detokenizer(tokenizer, skip_special_tokens=request.skip_special_tokens, continues=True)
        return _StopConstraint(detokenizer, StopMachine(request.stop_strings), request.min_tokens)

    return compile_request
