"""The slots and tokens of a runner: who holds them, and what is left."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from arriero.engine.budget import Budget, Holder
from arriero.engine.encodings import Encoding
from arriero.engine.prefixes import LEAST_SHARED, Prefixes
from arriero.engine.sequence import Group, Sequence
from arriero.engine.step import Step


class Room:
    """Every slot is free, held, or kept for the prompt in it, which ends when somebody needs the slot or its tokens."""

    def __init__(self, num_slots: int, token_budget: int, kept: Prefixes) -> None:
        self.kept = kept
        self._budget = Budget(token_budget)
        self._num_slots = num_slots
        self._free = list(range(num_slots))  # a heap: low slots first keeps the used memory together
        self._frees: list[int] = []

    @property
    def num_held(self) -> int:
        """Slots of what is running."""
        return self._num_slots - len(self._free) - len(self.kept)

    @property
    def num_reserved_tokens(self) -> int:
        """Tokens that are set aside for what is running."""
        return self._budget.num_reserved_tokens

    @property
    def growing(self) -> Iterable[Sequence]:
        """Those that may come to hold more tokens than are set aside for them, the oldest first."""
        return self._budget.growing

    @property
    def has_frees(self) -> bool:
        """Whether there are slots that the runner is yet to free."""
        return bool(self._frees)

    def take_frees(self) -> list[int]:
        """The slots that the runner is to free now."""
        frees, self._frees = self._frees, []
        return frees

    def num_fitting(self, waiting: Iterable[Group | Encoding]) -> int:
        """How many of these fit, up to the first that does not."""
        slots = len(self._free) + len(self.kept)
        admitted: list[Holder] = []
        count = 0
        for group in waiting:
            admitted += _holders(group)
            if len(admitted) > slots or not self._budget.has_room(admitted):
                break
            count += 1
        return count

    def admit(self, group: Group | Encoding) -> None:
        """Give slots and tokens to one that fits."""
        holders = _holders(group)
        self._budget.admit(holders)
        self._give_back(self.kept.shrink(self._budget.num_free_tokens))
        for holder in holders:
            if not self._free:
                self._give_back([self.kept.pop()])
            holder.slot = heapq.heappop(self._free)

    def grow(self, sequence: Sequence) -> bool:
        """Set more tokens aside for an answer; False if it has to wait."""
        grown = self._budget.grow(sequence)
        self._give_back(self.kept.shrink(self._budget.num_free_tokens))
        return grown

    def release(self, holder: Holder) -> None:
        """Take back what is held; a slot's contents stay readable for the copies that the next step begins with."""
        self._budget.release(holder)
        self._give_back([holder] if isinstance(holder, Encoding) else self.kept.add(holder))

    def unread(self) -> Sequence | None:
        """A sequence that is kept and of which there is more to be read, see `Prefixes.unread`."""
        return self.kept.unread(self._budget.num_free_tokens)

    def share(self, step: Step, sequence: Sequence, others: Iterable[Sequence]) -> bool:
        """Give the sequence what it shares with its source; False if the source's slot has just become another's.

        It is copied for whoever may want it again: `others`, or prompts to come.
        """
        source, sequence.source = sequence.source, None
        if source is None:
            return True
        if source.finished and source not in self.kept:
            sequence.source = source
            return False
        num_shared = sequence.num_shared_tokens
        wanted = source.num_read_tokens - num_shared >= LEAST_SHARED or any(each.source is source for each in others)
        if source.finished and not wanted:  # its slot goes on as ours
            self.kept.remove(source)
            heapq.heappush(self._free, sequence.slot)
            sequence.slot = source.slot
        else:
            step.copies.append((source.slot, sequence.slot))
            if sequence.slot in step.frees:  # it was somebody's until now; the copy comes before the frees
                step.frees.remove(sequence.slot)
        step.truncations.append((sequence.slot, num_shared))
        sequence.num_computed_tokens = sequence.num_cached_tokens = num_shared
        return True

    def _give_back(self, holders: Iterable[Holder]) -> None:
        for holder in holders:
            heapq.heappush(self._free, holder.slot)
            self._frees.append(holder.slot)


def _holders(group: Group | Encoding) -> Iterable[Holder]:
    return [group] if isinstance(group, Encoding) else group.sequences
