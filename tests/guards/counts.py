"""Counts of work: the same on any machine and under any load, so they may be held where seconds may not.

A change that makes a count fall is welcome; write the new one down, so that it cannot creep back.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from types import FrameType
from typing import Any

import numpy as np

from arriero.compute import Want
from arriero.runners.scripted import ScriptedRunner


def check(what: str, counted: Mapping[str, int], recorded: Mapping[str, int]) -> None:
    """Fail if anything is counted more often than recorded, or at all without a record."""
    risen = [
        f"{name} from {recorded.get(name, 0)} to {count}"
        for name, count in sorted(counted.items())
        if count > recorded.get(name, 0)
    ]
    assert not risen, f"{what}: " + ", ".join(risen)


class CountingRunner(ScriptedRunner):
    """A scripted runner that counts what it is asked for."""

    def __init__(self, **options: Any) -> None:
        defaults: dict[str, Any] = {"vocab_size": 60, "num_slots": 32, "context": 4000, "end_token_id": 0}
        super().__init__(**(defaults | options))
        self.counts: Counter[str] = Counter()

    def step(self, rows):
        self.counts["steps"] += 1
        self.counts["rows"] += len(rows)
        self.counts["tokens"] += sum(len(row.tokens) for row in rows)
        self.counts["logits"] += sum(
            {Want.NOTHING: 0, Want.LAST: 1, Want.ALL: len(row.tokens)}[row.want] for row in rows
        )
        return super().step(rows)

    def copy(self, pairs):
        self.counts["copied tokens"] += sum(len(self._slots[source].tokens) for source, _ in pairs)
        self.counts["copies"] += len(pairs)
        super().copy(pairs)

    def truncate(self, slot, length):
        self.counts["truncations"] += 1
        super().truncate(slot, length)

    def free(self, slot):
        self.counts["frees"] += 1
        super().free(slot)


class Calls:
    """Counts function calls by the package's room they are made in: `with Calls("engine") as calls`."""

    def __init__(self, room: str) -> None:
        self._path = f"/arriero/{room}/"
        self.functions = 0
        """Functions written in Python, comprehensions aside: some versions make functions of them."""
        self.builtins = 0
        """Those that are not; what NumPy calls in turn does not count."""

    def __enter__(self) -> Calls:
        self._previous = sys.getprofile()
        sys.setprofile(self._count)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(self._previous)

    def _count(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and self._path in frame.f_code.co_filename and not frame.f_code.co_name.startswith("<"):
            self.functions += 1
        elif event == "c_call" and self._path in frame.f_code.co_filename:
            self.builtins += 1


def tokens(count: int, seed: int = 1) -> tuple[int, ...]:
    """A prompt in which nothing repeats itself for long, of tokens 1 to 59."""
    return tuple((np.random.PCG64(seed).random_raw(count) % 59 + 1).tolist())
