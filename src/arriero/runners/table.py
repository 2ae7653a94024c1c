"""Matrices of which few rows are wanted at a time, read from their files."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class Table:
    """The rows of a matrix in a file, read when they are wanted.

    A mapped file would be counted to the process in pieces of up to 2 MB, so soon all of it; rows that are read take
    no memory, and the system keeps the file's pages as long as it has room.
    """

    def __init__(self, file: Path) -> None:
        """`file` has a float32 matrix as NumPy saves it."""
        matrix = np.load(file, mmap_mode="r")
        self._width = matrix.shape[1]
        self._start = matrix.offset
        self._file = os.open(file, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def rows(self, numbers: Sequence[int]) -> NDArray[np.float32]:
        """These rows, float32 [rows, width]."""
        rows = np.empty((len(numbers), self._width), np.float32)
        for row, number in zip(rows, numbers, strict=True):
            os.preadv(self._file, [row], self._start + number * row.nbytes)
        return rows
