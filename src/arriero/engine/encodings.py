"""Inputs that are read for their hidden states, beside the prompts of answers.

An encoding request holds one slot, however many inputs it has, and reads them through it one after another: hidden
states take a run of the model for each row anyway, so more slots would gain it nothing and cost others theirs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arriero.compute import Row
from arriero.core import EncodingRequest

LEAST_COST = 32
"""Tokens of prompt that cost about as much as a shorter input does: the model's weights are read for each."""


@dataclass(eq=False, slots=True)
class Encoding:
    """One encoding request in the engine, admitted or waiting; also the handle by which it is aborted."""

    request: EncodingRequest
    vectors: NDArray[np.float32]
    """The means of the states, float32 [inputs, hidden_size]; all there once it is finished."""
    queued_at: float = 0.0
    """When it came, in seconds."""
    queue_seconds: float = 0.0
    """How long it waited until it was admitted."""
    slot: int = -1
    finished: bool = False
    input: int = 0
    """Index of the input that is being read."""
    position: int = 0
    """Its tokens that are read, or will be with the steps that are planned."""
    total: NDArray[np.float64] | float = 0.0
    """The sum of the states of the input of which some but not all are known."""

    @property
    def num_reserved_tokens(self) -> int:
        """Tokens of the key/value budget that it may come to hold."""
        return max(map(len, self.request.inputs))

    @property
    def num_most_tokens(self) -> int:
        """The same: it is known from the start."""
        return self.num_reserved_tokens

    @property
    def num_left(self) -> int:
        """Tokens that are left of the input that is being read; 0 when all inputs are planned."""
        inputs = self.request.inputs
        return len(inputs[self.input]) - self.position if self.input < len(inputs) else 0


@dataclass(frozen=True, slots=True)
class Reading:
    """A row that is read for its states; at position 0 it begins its slot anew."""

    encoding: Encoding
    input: int
    row: Row

    @property
    def cost(self) -> int:
        """What it takes of a step's room for tokens."""
        return max(len(self.row.tokens), LEAST_COST)


class Encodings:
    """Those that hold a slot. They take turns, an input each, so that a long list holds nobody up."""

    def __init__(self) -> None:
        self._queue: deque[Encoding] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, encoding: Encoding) -> None:
        """Let one that got its slot take part."""
        self._queue.append(encoding)

    def remove(self, encoding: Encoding) -> None:
        """It reads no more; nothing happens if it has planned all its inputs."""
        if encoding in self._queue:
            self._queue.remove(encoding)

    def plan(self, room: int, chunk_of: Callable[[int, int], int] | None) -> list[Reading]:
        """What to read with `room` tokens; only the first input may be cut, if `chunk_of(left, room)` says where."""
        readings: list[Reading] = []
        while self._queue:
            encoding = self._queue[0]
            count = encoding.num_left
            if chunk_of and not readings:
                count = chunk_of(count, room)
            elif max(count, LEAST_COST) > room:
                break
            readings.append(self._read(encoding, count))
            room -= readings[-1].cost
        return readings

    def _read(self, encoding: Encoding, count: int) -> Reading:
        request, index, start = encoding.request, encoding.input, encoding.position
        tokens = request.inputs[index][start : start + count]
        encoding.position += count
        if encoding.num_left == 0:
            encoding.input, encoding.position = index + 1, 0
            self._queue.rotate(-1)
            if encoding.num_left == 0:
                self._queue.pop()
        return Reading(encoding, index, Row(encoding.slot, tokens, start, adapter=request.adapter))


def take(readings: Sequence[Reading], sums: Sequence[NDArray[np.float64]]) -> list[Encoding]:
    """Take in the sums of states that came of readings; the encodings that are complete with them."""
    complete = []
    for reading, values in zip(readings, sums, strict=True):
        encoding, row = reading.encoding, reading.row
        encoding.total = values if row.position == 0 else encoding.total + values
        length = len(encoding.request.inputs[reading.input])
        if row.position + len(row.tokens) == length:
            encoding.vectors[reading.input] = encoding.total / length
            if reading.input + 1 == len(encoding.request.inputs):
                complete.append(encoding)
    return complete
