"""Keys and values of all slots, as halves.

Each slot has room for its context in blocks of 64 tokens: [block][layer][head of keys and values][keys, values].
Keys of a block lie as [64 / 16][head size][16 tokens], values as [64 tokens][head size]. So a sequence's tokens lie
behind each other over all layers, and a copy of some is one copy of memory.

Memory is reserved, not used: a page costs nothing before a token is written to it, and pages of long contexts go
back to the system when their slot is freed.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np

from arriero.models.architecture import DecoderConfig
from arriero.runners.native.plan import BLOCK, padded

KEPT_TOKENS = 512
"""Memory of so many tokens stays with a slot that is freed, to be written again soon."""


class KeyValueCache:
    """One range of memory a slot, and how many tokens each holds."""

    def __init__(self, config: DecoderConfig, num_slots: int, context: int) -> None:
        self.layer_bytes = config.num_kv_heads * 4 * BLOCK * config.head_dim
        self.block_bytes = config.num_layers * self.layer_bytes
        self.bytes_per_token = self.block_bytes // BLOCK
        # Whole pages, so that those of one slot can be given back.
        self._slot_bytes = padded(self._bytes_of(context), mmap.PAGESIZE)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._memory = mmap.mmap(-1, num_slots * self._slot_bytes, flags=flags)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._lengths = [0] * num_slots
        self._touched = [0] * num_slots

    def address(self, slot: int) -> int:
        """Where a slot's memory begins."""
        return int(self._bytes.ctypes.data) + slot * self._slot_bytes

    def grow(self, slot: int, length: int) -> None:
        """Record that a slot has been filled up to `length` tokens."""
        self._lengths[slot] = length
        self._touched[slot] = max(self._touched[slot], length)

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self._lengths[slot] = min(self._lengths[slot], length)

    def free(self, slot: int) -> None:
        """Forget a slot; the pages of a long context go back to the system."""
        self._lengths[slot] = 0
        if self._touched[slot] > KEPT_TOKENS:
            kept, end = (padded(self._bytes_of(tokens), mmap.PAGESIZE) for tokens in (KEPT_TOKENS, self._touched[slot]))
            if end > kept:
                self._memory.madvise(mmap.MADV_DONTNEED, slot * self._slot_bytes + kept, end - kept)
            self._touched[slot] = KEPT_TOKENS

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Give each destination slot its source's contents, all at once."""
        sources = {source for source, _ in pairs}
        overwritten = sources & {destination for _, destination in pairs}
        saved = {slot: self._held(slot).copy() for slot in overwritten}
        lengths = {slot: self._lengths[slot] for slot in sources}
        for source, destination in pairs:
            if source == destination:
                continue
            held = saved[source] if source in saved else self._bytes[self._range(source, lengths[source])]
            self._bytes[self._range(destination, lengths[source])] = held
            self.grow(destination, lengths[source])

    def close(self) -> None:
        """Let go of the memory."""
        del self._bytes
        self._memory.close()

    def _held(self, slot: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        return self._bytes[self._range(slot, self._lengths[slot])]

    def _range(self, slot: int, length: int) -> slice:
        start = slot * self._slot_bytes
        return slice(start, start + self._bytes_of(length))

    def _bytes_of(self, length: int) -> int:
        """Bytes of the blocks that hold so many tokens."""
        return padded(length, BLOCK) // BLOCK * self.block_bytes
