"""Keys and values of several slots side by side, as one cache of transformers.

The rows of a pack end in the same column: shorter ones are padded on the left, as in a batch of prompts, which every
model of transformers that can be batched understands. A step writes its tokens' keys and values behind them, for all
rows at once. Slots that are decoded together for many steps therefore lie in one pack that only grows; when others
come or go the rows are gathered into a new one, which costs one copy.

Beside an encoder-decoder's rows lie the keys and values that attend to their sources, padded on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

ROOM = 64
"""Columns that a layer grows by at least, so that few steps copy it."""


class Columns(DynamicLayer):
    """One layer's keys and values, float [rows, heads, columns, head_dim], which grow in place."""

    _keys: torch.Tensor | None = None
    _values: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns; returns all of them."""
        width = self.get_seq_length()
        end = width + key_states.shape[-2]
        self.keys, self._keys = _appended(self._keys, width, end, key_states)
        self.values, self._values = _appended(self._values, width, end, value_states)
        self.is_initialized = True
        return self.keys, self.values

    def fill(self, keys: torch.Tensor, values: torch.Tensor) -> Columns:
        """Hold these, which nobody else writes to."""
        self.keys = self._keys = keys
        self.values = self._values = values
        self.is_initialized = True
        return self


def _appended(
    buffer: torch.Tensor | None, width: int, end: int, states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The columns with new ones behind them, and the buffer that they lie in."""
    if buffer is None or end > buffer.shape[-2]:
        rows, heads, _, size = states.shape
        grown = states.new_zeros(rows, heads, end + max(ROOM, end // 8), size)
        if buffer is not None:
            grown[..., :width, :] = buffer[..., :width, :]
        buffer = grown
    buffer[..., width:end, :] = states
    return buffer[..., :end, :], buffer


class ColumnCache(DynamicCache):
    """Those of all layers, in the shape that models ask for."""

    def __init__(self, layers: list[Columns] | None = None) -> None:
        """Without `layers` there are no columns yet, and layers come with the first of them."""
        if layers is None:
            Cache.__init__(self, layer_class_to_replicate=Columns)
        else:
            Cache.__init__(self, layers=layers)

    @property
    def width(self) -> int:
        """Columns of each layer."""
        return int(self.get_seq_length())


@dataclass(eq=False, slots=True)
class Pack:
    """Rows that are computed together; row i belongs to `slots[i]`."""

    slots: list[int]
    lengths: list[int]
    """Tokens that each row holds; the columns before them are padding."""
    cache: ColumnCache = field(default_factory=ColumnCache)
    source_lengths: list[int] = field(default_factory=list)
    """Tokens of each row's source; empty for a decoder."""
    source: torch.Tensor | None = None
    """What the encoder made of the source of a single row, until keys and values are made of it."""
    cross: ColumnCache = field(default_factory=ColumnCache)
    """Keys and values of the sources."""

    @property
    def width(self) -> int:
        """Columns, padding included."""
        return self.cache.width

    def mask(self, num_new: int) -> torch.Tensor:
        """Which columns count, with `num_new` to come: int64 [rows, columns]."""
        return _right_aligned(self.lengths, self.width, num_new)

    def source_mask(self) -> torch.Tensor:
        """Which of the sources' columns count: int64 [rows, columns]."""
        columns = torch.arange(max(self.source_lengths))
        return (columns < torch.tensor(self.source_lengths)[:, None]).long()


def _right_aligned(lengths: Sequence[int], width: int, num_new: int) -> torch.Tensor:
    columns = torch.arange(width + num_new)
    return (columns >= width - torch.tensor(lengths)[:, None]).long()


Place = tuple[Pack, int]
"""Where a slot lies: a pack, and the row in it."""


def gather(slots: Sequence[int], places: Sequence[Place]) -> Pack:
    """A new pack with a copy of these rows, for these slots. No row may wait for keys and values of its source."""
    packed = Pack(list(slots), [pack.lengths[row] for pack, row in places])
    first = places[0][0]
    if any(packed.lengths):
        width = max(packed.lengths)
        packed.cache = _gathered([(pack.cache, pack.width, row) for pack, row in places], width, left=True)
    if first.source_lengths:
        packed.source_lengths = [pack.source_lengths[row] for pack, row in places]
        width = max(packed.source_lengths)
        sources = [(pack.cross, pack.cross.width, row) for pack, row in places]
        packed.cross = _gathered(sources, width, left=False)
    return packed


def take(slot: int, place: Place, length: int) -> Pack:
    """A new pack with a copy of the first `length` tokens of one row."""
    pack, row = place
    start = pack.width - pack.lengths[row]
    taken = Pack([slot], [length], source=pack.source)
    if length:
        taken.cache = _sliced(pack.cache, row, slice(start, start + length))
    if pack.source_lengths:
        taken.source_lengths = [pack.source_lengths[row]]
        if pack.source is None:
            taken.cross = _sliced(pack.cross, row, slice(0, pack.source_lengths[row]))
    return taken


def _sliced(cache: ColumnCache, row: int, columns: slice) -> ColumnCache:
    layers = [
        Columns().fill(layer.keys[row : row + 1, :, columns].clone(), layer.values[row : row + 1, :, columns].clone())
        for layer in cache.layers
    ]
    return ColumnCache(layers)


def _gathered(places: Sequence[tuple[ColumnCache, int, int]], width: int, *, left: bool) -> ColumnCache:
    """Rows of caches of other widths, aligned on the right (padded on the `left`) or on the left."""
    moves: dict[int, tuple[ColumnCache, int, list[int], list[int]]] = {}
    for destination, (cache, old_width, row) in enumerate(places):
        _, _, rows, destinations = moves.setdefault(id(cache), (cache, old_width, [], []))
        rows.append(row)
        destinations.append(destination)
    layers = []
    for index in range(max(len(cache.layers) for cache, _, _ in places)):
        held = [(cache.layers[index], *move) for cache, *move in moves.values() if cache.layers]
        keys = _joined([(layer.keys, *move) for layer, *move in held], len(places), width, left)
        values = _joined([(layer.values, *move) for layer, *move in held], len(places), width, left)
        layers.append(Columns().fill(keys, values))
    return ColumnCache(layers)


def _joined(
    moves: Sequence[tuple[torch.Tensor, int, list[int], list[int]]], num_rows: int, width: int, left: bool
) -> torch.Tensor:
    """`moves` say which rows of a tensor of so many columns go to which rows of the result."""
    some = moves[0][0]
    joined = some.new_zeros(num_rows, some.shape[1], width, some.shape[3])
    for states, old_width, rows, destinations in moves:
        kept = min(old_width, width)
        if left:
            joined[destinations, :, width - kept :] = states[rows, :, old_width - kept : old_width]
        else:
            joined[destinations, :, :kept] = states[rows, :, :kept]
    return joined
