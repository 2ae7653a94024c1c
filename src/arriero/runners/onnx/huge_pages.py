"""Weights in huge pages, so that reading all of them does not wait for the processor's page tables.

Every step reads every weight once. In pages of 4 kB that is tens of thousands of look-ups a step, dear ones in a
virtual machine; in pages of 2 MB it is a few dozen. onnxruntime allocates packed weights with malloc, which does not
ask for huge pages, so what it allocated is moved into them afterwards (`MADV_COLLAPSE`, Linux 6.1).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = 2 << 20
_MAPS = Path("/proc/self/maps")
_HUGEPAGE, _COLLAPSE = 14, 25
"""Numbers of `madvise` that Python's mmap does not name."""

Range = tuple[int, int]
"""First address, and the first behind it."""


@contextmanager
def huge_pages() -> Iterator[None]:
    """Move what is allocated meanwhile, and is larger than a huge page, into huge pages, where Linux can."""
    before = _anonymous()
    yield
    if sys.platform == "linux":
        _collapse(fresh(before, _anonymous()))


def fresh(before: list[Range], after: list[Range]) -> Iterator[Range]:
    """The parts of the ranges of `after` that no range of `before` covers; both in order."""
    for start, stop in after:
        for old_start, old_stop in before:
            if old_start < stop and start < old_stop:
                if start < old_start:
                    yield start, old_start
                start = old_stop
        if start < stop:
            yield start, stop


def _anonymous() -> list[Range]:
    """Writable memory of this process that belongs to no file."""
    if not _MAPS.exists():
        return []
    ranges = []
    for line in _MAPS.read_text().splitlines():
        addresses, access, _, _, inode, *name = line.split()
        if access == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, stop = (int(address, 16) for address in addresses.split("-"))
            ranges.append((start, stop))
    return ranges


def _collapse(ranges: Iterator[Range]) -> None:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, stop in ranges:
        first, last = -(-start // PAGE) * PAGE, stop // PAGE * PAGE
        if last > first:
            madvise(first, last - first, _HUGEPAGE)
        # One by one, because the first that was never written to would end a call for all of them. Where the kernel
        # cannot, pages stay as they are.
        for page in range(first, last, PAGE):
            madvise(page, PAGE, _COLLAPSE)
