"""The tokens of a model and of its adapters: where they are looked up, and how their logits are laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from arriero.compute import Row
from arriero.runners.onnx.adapters import read_vocabularies
from arriero.runners.table import Table


class Vocabularies:
    """One for the base model and one for each adapter, by number."""

    def __init__(self, directory: Path, base_size: int) -> None:
        """Open the tables of a directory that `build_decoder` or `build_adapters` wrote."""
        entries = read_vocabularies(directory, base_size)
        files = {entry.embeddings: Table(directory / entry.embeddings) for entry in entries}
        self._tables = [files[entry.embeddings] for entry in entries]
        self.heads = [entry.head for entry in entries]
        """By adapter, the suffix of the graph's output that has its logits."""
        self.sizes = [entry.size for entry in entries]
        self.largest = max(self.sizes)
        self.widths = dict(zip(self.heads, self.sizes, strict=True))
        """Tokens by head."""

    @property
    def num_adapters(self) -> int:
        """Besides the base."""
        return len(self.sizes) - 1

    def embed(self, adapter: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The vectors of tokens, float32 [tokens, hidden]."""
        return self._tables[adapter].rows(tokens)

    def embed_rows(self, rows: Sequence[Row], into: NDArray[np.float32]) -> None:
        """Write the vector of each row's only token into [rows, hidden]."""
        adapters = {row.adapter for row in rows}
        for adapter in adapters:
            places = [place for place, row in enumerate(rows) if row.adapter == adapter]
            vectors = self.embed(adapter, [rows[place].tokens[0] for place in places])
            into[places if len(adapters) > 1 else slice(None)] = vectors

    def merge(self, heads: Sequence[str], logits: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """The logits of rows, each from its head: float32 [rows, largest], negative infinity beyond a vocabulary.

        `logits` has each head's rows in their order.
        """
        used = set(heads)
        if len(used) == 1 and self.widths[heads[0]] == self.largest:
            return logits[heads[0]]
        merged = np.full((len(heads), self.largest), -np.inf, np.float32)
        for head in used:
            places = [place for place, each in enumerate(heads) if each == head]
            merged[places, : self.widths[head]] = logits[head]
        return merged
