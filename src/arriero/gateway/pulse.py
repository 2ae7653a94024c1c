"""Whether the server still gets on: its event loop is in time, and engines that have work make steps."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable

from arriero.gateway.metrics import ModelState

BEAT = 0.5
"""Seconds between two looks at the clock."""
LATE = 2.0
"""Seconds by which the loop may be late, several times in a row."""


class Pulse:
    """Feels how late the event loop is, from `start` to `stop`."""

    def __init__(self) -> None:
        self._lags: deque[float] = deque([0.0], maxlen=10)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def lag(self) -> float:
        """Seconds that it was late at the worst in the last few seconds."""
        return max(self._lags)

    @property
    def is_late(self) -> bool:
        """Whether it is late all the time, not just once."""
        return len(self._lags) >= 3 and min(list(self._lags)[-3:]) > LATE

    def start(self) -> None:
        """Begin, on the running loop."""
        self._beat(asyncio.get_running_loop().time())

    def stop(self) -> None:
        """End."""
        if self._timer:
            self._timer.cancel()

    def _beat(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._lags.append(max(0.0, now - due))
        self._timer = loop.call_at(now + BEAT, self._beat, now + BEAT)


class Progress:
    """Remembers since when each engine that has work was seen at the same step."""

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`limit` is for how many seconds an engine with work may make no step."""
        self._limit = limit
        self._clock = clock
        self._seen: dict[str, tuple[int | None, float]] = {}

    def stalled(self, models: Iterable[ModelState]) -> list[str]:
        """The models whose engines have had work and made no step for too long."""
        now = self._clock()
        stalled = []
        for model in models:
            stats = model.stats
            busy = model.state == "ready" and (stats.waiting or stats.running)
            steps = stats.steps if busy else None
            before, since = self._seen.get(model.name, (None, now))
            if steps is None or steps != before:
                self._seen[model.name] = steps, now
            elif now - since > self._limit:
                stalled.append(model.name)
        return stalled
