"""Who waits, and who is next: callers take turns by what their requests cost, not by how many they send.

Start-time fair queueing (Goyal, Vin and Cheng, 1996). Each caller has a place on a line of virtual time, which each of
their requests moves on by its cost over their weight; the caller who is furthest behind is next. Who comes back after a
pause starts where the others are, so nobody saves up. Among requests of one caller their own priority decides, then
age: it gets nobody ahead of others. One caller alone has a plain queue.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


@dataclass(slots=True)
class _Line(Generic[T]):
    """What one caller waits for."""

    place: float
    """In virtual time."""
    entries: list[tuple[int, int, float, T]] = field(default_factory=list)
    """Sorted: priority, number of arrival, cost over weight, item."""


class FairQueue(Generic[T]):
    """A queue of items, each of some caller's. Pure bookkeeping, no clock."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[T]] = {}
        self._owners: dict[T, tuple[str, int, int]] = {}
        self._left: dict[str, float] = {}  # places of callers who wait for nothing, while others wait
        self._now = 0.0
        self._arrivals = count()

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, item: T) -> bool:
        return item in self._owners

    def __iter__(self) -> Iterator[T]:
        """All items in the order in which they would be taken; lazily, as only the first of them matter most times."""
        if len(self._lines) == 1:
            for line in self._lines.values():
                yield from (entry[3] for entry in line.entries)
            return
        heads = [(line.place, line.entries[0][1], 0, line) for line in self._lines.values()]
        heapq.heapify(heads)
        while heads:
            place, _, index, line = heapq.heappop(heads)
            yield line.entries[index][3]
            if index + 1 < len(line.entries):
                later = place + line.entries[index][2]
                heapq.heappush(heads, (later, line.entries[index + 1][1], index + 1, line))

    @property
    def num_callers(self) -> int:
        """Callers who wait."""
        return len(self._lines)

    def num_of(self, caller: str) -> int:
        """What one caller waits for."""
        return len(self._lines[caller].entries) if caller in self._lines else 0

    def push(self, item: T, *, cost: float, caller: str = "", weight: float = 1.0, priority: int = 0) -> None:
        """Put an item at the end; a lower `priority` goes ahead of the caller's other items."""
        number = next(self._arrivals)
        if caller not in self._lines:
            self._lines[caller] = _Line(max(self._now, self._left.pop(caller, 0.0)))
        insort(self._lines[caller].entries, (priority, number, cost / weight, item))
        self._owners[item] = caller, priority, number

    def first(self) -> T:
        """The item that is next; it stays, so that it can be taken in parts, each of which is charged."""
        _, line = self._next()
        self._now = line.place
        return line.entries[0][3]

    def pop(self) -> T:
        """Take the item that is next."""
        caller, line = self._next()
        _, _, cost, item = line.entries.pop(0)
        del self._owners[item]
        self._now = line.place
        line.place += cost
        self._drop_if_empty(caller)
        return item

    def charge(self, caller: str, cost: float, weight: float = 1.0) -> None:
        """Have somebody who waits pay for what was done for them, out of turn or in parts."""
        self._lines[caller].place += cost / weight

    def place(self, caller: str) -> float:
        """How far somebody who waits has come, in virtual time; it is the turn of who is furthest behind."""
        return self._lines[caller].place

    def remove(self, item: T) -> None:
        """Take an item that nobody waits for any more; it has cost nothing."""
        caller, priority, number = self._owners.pop(item)
        entries = self._lines[caller].entries
        del entries[bisect_left(entries, (priority, number))]
        self._drop_if_empty(caller)

    def _next(self) -> tuple[str, _Line[T]]:
        return min(self._lines.items(), key=lambda each: (each[1].place, each[1].entries[0][1]))

    def _drop_if_empty(self, caller: str) -> None:
        if self._lines[caller].entries:
            return
        self._left[caller] = self._lines.pop(caller).place
        if not self._lines:  # nobody waits, so nobody is behind
            self._left.clear()
            self._now = 0.0
