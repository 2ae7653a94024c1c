"""Continuous batching over any model of transformers whose cache is keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from arriero.compute import Row, RunnerInfo, Want
from arriero.runners.torch.network import Network
from arriero.runners.torch.pack import Pack, Place, gather, take

SHORT = 256
"""Rows of fewer tokens may share a pack whatever their lengths; longer ones when one is less than twice as long as
the other. So padding takes no more memory and work than the tokens themselves. The same holds for sources."""


class TorchRunner:
    """A `Runner` that decodes many rows in one call of the model; a row with several tokens is a call of its own."""

    def __init__(self, network: Network, info: RunnerInfo, *, together: bool = True) -> None:
        """`together` says whether rows may share a call, see `arriero.runners.torch.trial`."""
        self._network = network
        self._together = together
        self._info = info
        self._places: dict[int, Place] = {}

    @property
    def info(self) -> RunnerInfo:
        """What this runner can do."""
        return self._info

    @torch.inference_mode()
    def step(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """See `Runner.step`."""
        logits: dict[int, NDArray[np.float32]] = {}
        for group in self._groups(rows):
            pack = self._packed([row.slot for row in group])
            by_slot = {row.slot: row for row in group}
            ordered = [by_slot[slot] for slot in pack.slots]
            computed = self._network.logits(pack, [row.tokens for row in ordered], _most([row.want for row in group]))
            values = computed.cpu().numpy()
            for place, row in enumerate(ordered):
                logits[row.slot] = values[place] if row.want is not Want.NOTHING else values[place, :0]
        return np.concatenate([logits[row.slot] for row in rows])

    @torch.inference_mode()
    def states(self, row: Row) -> NDArray[np.float32]:
        """See `Runner.states`."""
        states = self._network.states(self._packed([row.slot]), [row.tokens])
        return states[0].cpu().numpy()

    @torch.inference_mode()
    def encode(self, slot: int, tokens: Sequence[int], adapter: int = 0) -> None:
        """See `Runner.encode`; there are no adapters, so `adapter` is 0."""
        self._lay(self._network.encode(slot, tokens))

    @torch.inference_mode()
    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See `Runner.copy`."""
        moved = [(source, destination) for source, destination in pairs if source != destination]
        copies = [
            take(destination, place, place[0].lengths[place[1]])
            for source, destination in moved
            if (place := self._places.get(source))
        ]
        for _, destination in moved:
            self.free(destination)
        for pack in copies:
            self._lay(pack)

    @torch.inference_mode()
    def truncate(self, slot: int, length: int) -> None:
        """See `Runner.truncate`."""
        if slot in self._places:
            pack, row = self._places[slot]
            if length < pack.lengths[row]:
                self._lay(take(slot, (pack, row), length))

    def free(self, slot: int) -> None:
        """See `Runner.free`; what a pack holds goes with the last of its slots."""
        self._places.pop(slot, None)

    def close(self) -> None:
        """See `Runner.close`."""
        self._places.clear()
        del self._network

    def _groups(self, rows: Sequence[Row]) -> list[list[Row]]:
        """The rows that run together: those of one token, by length; not those that still wait for their source."""
        groups: dict[tuple[int, ...], list[Row]] = {}
        for row in rows:
            groups.setdefault(self._kind(row), []).append(row)
        return list(groups.values())

    def _kind(self, row: Row) -> tuple[int, ...]:
        """What rows that share a call have in common: about how long they and their sources are, else the slot."""
        pack, place = self._places.get(row.slot, (None, 0))
        waits = pack is not None and pack.source is not None
        if len(row.tokens) > 1 or waits or not self._together:
            return (row.slot,)
        source = pack.source_lengths[place] if pack and pack.source_lengths else 0
        return (_magnitude(row.position), _magnitude(source))

    def _packed(self, slots: Sequence[int]) -> Pack:
        """The pack of exactly these slots, in any order; they are moved into one if need be."""
        first = self._places.get(slots[0])
        if first and len(first[0].slots) == len(slots) and all(self._lies_in(slot, first[0]) for slot in slots):
            return first[0]
        places = [self._places.get(slot) or (Pack([slot], [0]), 0) for slot in slots]
        pack = places[0][0] if len(slots) == 1 and not self._places.get(slots[0]) else gather(slots, places)
        self._lay(pack)
        return pack

    def _lies_in(self, slot: int, pack: Pack) -> bool:
        return slot in self._places and self._places[slot][0] is pack

    def _lay(self, pack: Pack) -> None:
        for row, slot in enumerate(pack.slots):
            self._places[slot] = (pack, row)


def _magnitude(length: int) -> int:
    """The same for short lengths, and for longer ones that differ by less than a factor of two."""
    return max(length, SHORT - 1).bit_length()


def _most(wants: Sequence[Want]) -> Want:
    return max(wants, key=lambda want: want.value)
