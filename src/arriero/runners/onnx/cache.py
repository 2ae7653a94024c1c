"""Keys and values of all slots, where the graph can update them in place.

One buffer a layer and kind, float32 [rows, kv_heads, context, head_dim]. Any run of neighbouring rows is
contiguous, so the graph decodes rows 0..n-1 as one batch and reads a prompt into one row by itself. Slots
are what the scheduler speaks of; rows are where they lie. `arrange` moves slots so that those to be decoded
come first; what it moves is one sequence's keys and values, far less work than computing them.

Memory is reserved, not used: a page costs nothing before a token is written to it, and pages of long
contexts go back to the system when their slot is freed.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from arriero.models.architecture import DecoderConfig

KEPT_TOKENS = 512
"""Pages of this many tokens a row stay with the process when its slot is freed, to be written again soon."""


class KeyValueCache:
    """Buffers, and which row each slot lies in."""

    def __init__(self, config: DecoderConfig, num_slots: int, context: int) -> None:
        self.context = context
        self._token_bytes = config.head_dim * 4
        self.bytes_per_token = 2 * config.num_layers * config.num_kv_heads * self._token_bytes
        shape = (num_slots, config.num_kv_heads, context, config.head_dim)
        self._maps = [_reserve(int(np.prod(shape)) * 4) for _ in range(2 * config.num_layers)]
        self.buffers: list[NDArray[np.float32]] = [np.frombuffer(m, np.float32).reshape(shape) for m in self._maps]
        self._rows: dict[int, int] = {}
        self._lengths = [0] * num_slots
        self._touched = [0] * num_slots

    def row(self, slot: int) -> int:
        """The row a slot lies in; a slot that holds nothing yet gets the first free one."""
        if slot not in self._rows:
            used = set(self._rows.values())
            self._rows[slot] = next(row for row in range(len(self._lengths)) if row not in used)
        return self._rows[slot]

    def length(self, slot: int) -> int:
        """Tokens that a slot holds."""
        return self._lengths[self._rows[slot]] if slot in self._rows else 0

    def grow(self, slot: int, length: int) -> None:
        """Record that the graph has filled a slot up to `length` tokens."""
        row = self._rows[slot]
        self._lengths[row] = length
        self._touched[row] = max(self._touched[row], length)

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens."""
        if slot in self._rows:
            row = self._rows[slot]
            self._lengths[row] = min(self._lengths[row], length)

    def free(self, slot: int) -> None:
        """Forget a slot; the pages of a long context go back to the system."""
        row = self._rows.pop(slot, None)
        if row is None:
            return
        self._lengths[row] = 0
        if self._touched[row] > KEPT_TOKENS:
            self._discard(row, KEPT_TOKENS, self._touched[row])
            self._touched[row] = KEPT_TOKENS

    def arrange(self, slots: Sequence[int]) -> list[int]:
        """Move these slots into the first rows; returns the slots in the order they then lie in."""
        for slot in slots:
            self.row(slot)
        wanted = set(slots)
        at = {row: slot for slot, row in self._rows.items()}
        outside = [slot for slot in slots if self._rows[slot] >= len(slots)]
        for row in range(len(slots)):
            if at.get(row) not in wanted:
                self._place(outside.pop(), row, at.get(row), len(slots))
        at = {row: slot for slot, row in self._rows.items()}
        return [at[row] for row in range(len(slots))]

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Give each destination slot its source's contents, all at once."""
        sources = [self.row(source) for source, _ in pairs]
        lengths = [self._lengths[row] for row in sources]
        destinations = [self.row(destination) for _, destination in pairs]
        longest = max(lengths, default=0)
        permuted = not set(sources).isdisjoint(destinations)
        for buffer in self.buffers:
            if permuted:  # indexing by a list copies the sources out before any destination is written
                buffer[destinations, :, :longest] = buffer[sources, :, :longest]
                continue
            for source, destination, length in zip(sources, destinations, lengths, strict=True):
                buffer[destination, :, :length] = buffer[source, :, :length]
        for row, length in zip(destinations, lengths, strict=True):
            self._lengths[row] = length
            self._touched[row] = max(self._touched[row], longest if permuted else length)

    def close(self) -> None:
        """Let go of the memory; it is unmapped once the graph's bindings are gone too."""
        self.buffers.clear()
        self._maps.clear()

    def _place(self, slot: int, row: int, occupant: int | None, num_wanted: int) -> None:
        """Put a slot into one of the first rows. The slot that lies there, if any, goes to the last free row behind
        them, or else where this one was: it is at rest, and nearer it would soon be in the way again."""
        if occupant is not None:
            used = set(self._rows.values())
            free = [each for each in range(num_wanted, len(self._lengths)) if each not in used]
            if not free:
                self._exchange(slot, row, occupant)
                return
            self._move(occupant, free[-1])
        self._move(slot, row)

    def _exchange(self, slot: int, row: int, occupant: int) -> None:
        """Put a slot into `row`, and the slot that lies there where it came from."""
        origin = self._rows[slot]
        length = max(self._lengths[origin], self._lengths[row])
        for buffer in self.buffers:
            buffer[[row, origin], :, :length] = buffer[[origin, row], :, :length]
        self._rows[occupant], self._rows[slot] = origin, row
        self._lengths[row], self._lengths[origin] = self._lengths[origin], self._lengths[row]
        for changed in (row, origin):
            self._touched[changed] = max(self._touched[changed], length)

    def _move(self, slot: int, row: int) -> None:
        """Put a slot into a free row."""
        origin = self._rows[slot]
        length = self._lengths[origin]
        for buffer in self.buffers:
            buffer[row, :, :length] = buffer[origin, :, :length]
        self._rows[slot] = row
        self._lengths[row], self._lengths[origin] = length, 0
        self._touched[row] = max(self._touched[row], length)

    def _discard(self, row: int, first: int, last: int) -> None:
        """Give back the whole pages that hold tokens first..last-1 of a row."""
        _, heads, context, _ = self.buffers[0].shape
        page = mmap.PAGESIZE
        for memory in self._maps:
            for head in range(heads):
                base = (row * heads + head) * context
                start = -(-(base + first) * self._token_bytes // page) * page
                stop = (base + last) * self._token_bytes // page * page
                if stop > start:
                    memory.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _reserve(size: int) -> mmap.mmap:
    """Anonymous memory, zero until written, not counted against the system before it is."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
