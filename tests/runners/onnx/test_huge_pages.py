"""Memory that is moved into huge pages."""

from __future__ import annotations

import mmap

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from arriero.runners.onnx.huge_pages import PAGE, Range, fresh, huge_pages


def ranges(bounds: list[int]) -> list[Range]:
    """Ranges in order that do not overlap."""
    ordered = sorted(set(bounds))
    return list(zip(ordered[::2], ordered[1::2], strict=False))


def addresses(parts: list[Range]) -> set[int]:
    return {address for start, stop in parts for address in range(start, stop)}


@given(st.lists(st.integers(0, 40)), st.lists(st.integers(0, 40)))
def test_only_what_was_not_there_before_is_fresh(old: list[int], new: list[int]) -> None:
    before, after = ranges(old), ranges(new)
    assert addresses(list(fresh(before, after))) == addresses(after) - addresses(before)


def test_memory_keeps_what_it_holds() -> None:
    with huge_pages():
        memory = mmap.mmap(-1, 4 * PAGE + mmap.PAGESIZE)
        values = np.frombuffer(memory, np.uint64)
        values[:-PAGE] = np.arange(len(values) - PAGE)  # the last pages are never written to
    assert np.array_equal(values[:-PAGE], np.arange(len(values) - PAGE))
    assert not values[-PAGE:].any()
