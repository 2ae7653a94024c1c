"""What tests of memory share."""

from collections.abc import Callable

import pytest


@pytest.fixture
def resident_bytes() -> Callable[[], int]:
    """How much memory this process holds now."""

    def read() -> int:
        with open("/proc/self/smaps_rollup") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))

    return read
