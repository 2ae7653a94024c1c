"""Guesses of what an answer says next, for a step that verifies several tokens at once.

The guess is what followed when the answer's last tokens last came, in the prompt or in the answer itself ("prompt
lookup"). Answers that quote, correct or sum up what they were given are guessed well, others badly; who guesses badly
pauses.
"""

from __future__ import annotations

from collections.abc import Sequence

SIZES = (3, 2)
"""So many last tokens are looked for, the longer match first."""
NEEDED = 0.8
"""Right guesses that make up for what it costs to verify some."""
PATIENCE = 2.0
"""Right guesses that may be missing before there is a pause."""
RECOVERY = 1 / 16
"""Of them, what each step of the pause gives back."""


def count_right(guesses: Sequence[int], tokens: Sequence[int]) -> int:
    """How many guesses are what was drawn in their places, up to the first that is not."""
    return next((place for place, guess in enumerate(guesses) if guess != tokens[place]), len(guesses))


class Guesses:
    """Of one sequence, which only ever goes on from what it was."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}  # where what followed some tokens stands
        self._num_read = 0
        self._balance = 0.0

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """At most so many tokens that may follow; none without a precedent, or in a pause."""
        self._read(tokens)
        if self._balance < -PATIENCE:
            self._balance += RECOVERY
            return []
        for size in SIZES:
            place = self._places.get(tuple(tokens[-size:]))
            if place is not None:
                return list(tokens[place : place + most])
        return []

    def learn(self, num_right: int) -> None:
        """So many of the last guess were right, one after another from the first."""
        self._balance = min(self._balance + num_right - NEEDED, PATIENCE)

    def _read(self, tokens: Sequence[int]) -> None:
        for end in range(self._num_read, len(tokens)):
            for size in SIZES:
                if size <= end:
                    self._places[tuple(tokens[end - size : end])] = end
        self._num_read = len(tokens)
