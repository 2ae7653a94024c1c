"""How many tokens of keys and values the admitted requests may hold, and who gets more of them.

What an answer may come to hold is reserved when it is admitted. Where nobody limited its length that is far more than
most need: then only what is likely is reserved, and what it needs beyond is asked for as it comes. All this is given
only while everybody could still come to an end, one after the other, even if all take the most that they may (the
safe states of Dijkstra's banker's algorithm, EWD 108). So an answer may have to wait for more room, and always gets it.
"""

from __future__ import annotations

from collections.abc import Iterable

from arriero.engine.encodings import Encoding
from arriero.engine.sequence import Sequence

Holder = Sequence | Encoding


class Budget:
    """The tokens, and those who hold some, the oldest first."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.num_reserved_tokens = 0
        self.growing: dict[Sequence, None] = {}
        """Those that may come to hold more than they have reserved, the oldest first."""

    @property
    def num_free_tokens(self) -> int:
        """Those that nobody has reserved."""
        return self.num_tokens - self.num_reserved_tokens

    def has_room(self, holders: Iterable[Holder]) -> bool:
        """Whether these could be admitted, all of them."""
        holders = list(holders)
        num_reserved = self.num_reserved_tokens + sum(each.num_reserved_tokens for each in holders)
        return self._everybody_can_end(num_reserved, [*self.growing, *holders])

    def admit(self, holders: Iterable[Holder]) -> None:
        """Reserve what they say."""
        for holder in holders:
            if isinstance(holder, Sequence) and holder.num_reserved_tokens < holder.num_most_tokens:
                self.growing[holder] = None
            self.num_reserved_tokens += holder.num_reserved_tokens

    def grow(self, sequence: Sequence) -> bool:
        """Reserve as much again as is likely to be enough; False if it has to wait for that."""
        before = sequence.num_reserved_tokens
        likely = sequence.group.request.likely_tokens or sequence.num_most_tokens
        sequence.num_reserved_tokens = min(before + likely, sequence.num_most_tokens)
        num_reserved = self.num_reserved_tokens + sequence.num_reserved_tokens - before
        if not self._everybody_can_end(num_reserved, self.growing):
            sequence.num_reserved_tokens = before
            return False
        self.num_reserved_tokens = num_reserved
        return True

    def release(self, holder: Holder) -> None:
        """Take back what one had."""
        if isinstance(holder, Sequence):
            self.growing.pop(holder, None)
        self.num_reserved_tokens -= holder.num_reserved_tokens

    def _everybody_can_end(self, num_reserved: int, holders: Iterable[Holder]) -> bool:
        """First those who need no more, in whatever order; then the others, the oldest first.

        `holders` are at least all others; all together have so many tokens reserved.
        """
        if num_reserved > self.num_tokens:
            return False
        growing = [holder for holder in holders if holder.num_reserved_tokens < holder.num_most_tokens]
        room = self.num_tokens - sum(holder.num_reserved_tokens for holder in growing)
        for holder in growing:
            if holder.num_most_tokens - holder.num_reserved_tokens > room:
                return False
            room += holder.num_reserved_tokens
        return True
