"""When not to ask a server: it failed several times, or it asked for a rest."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]

_MAX_CONSECUTIVE = 5
"""Failures in a row that open the circuit."""
_WINDOW = 20
"""Latest requests of which the error rate is taken."""
_MAX_FAILED = 10
"""Failures among them that open it."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_LONGEST_REST = 600.0
"""Seconds that a server may ask to be left alone for."""


class Circuit:
    """Keeps requests from a server that fails.

    Closed: requests go through. Open: none do until a check finds the server alive. Half-open: one request tries;
    what comes of it closes the circuit or opens it again for twice as long. Pauses are drawn from the upper half of
    their range, so that many who lost a server do not come back at once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, draw: Callable[[], float] = random.random) -> None:
        self._clock, self._draw = clock, draw
        self.state: State = "closed"
        self._trying = False
        self._consecutive = 0
        self._latest: deque[bool] = deque(maxlen=_WINDOW)
        self._range = _FIRST_PAUSE
        self._rests_until = 0.0
        self.pause = 0.0
        """Seconds from the opening to the first check."""

    @property
    def admits(self) -> bool:
        """Whether a request may go to the server."""
        return self.state == "closed" or (self.state == "half-open" and not self._trying)

    @property
    def rests(self) -> bool:
        """The server is well and asked for a pause; whoever has no other may ask it all the same."""
        return self._clock() < self._rests_until

    def begin(self) -> None:
        """A request goes to the server."""
        self._trying = self.state == "half-open"

    def rest(self, seconds: float) -> None:
        """The server said that it has no room for so long."""
        self.succeed()
        self._rests_until = self._clock() + min(seconds, _LONGEST_REST)

    def succeed(self) -> None:
        """The server answered."""
        self._trying = False
        self._consecutive = 0
        self._latest.append(True)
        if self.state == "half-open":
            self.state = "closed"
            self._latest.clear()
            self._range = _FIRST_PAUSE

    def give_up(self) -> None:
        """The caller left before the server had shown how it is."""
        self._trying = False

    def fail(self) -> bool:
        """The server did not answer, or broke off; True when this opens the circuit, which then wants to be checked."""
        self._trying = False
        self._consecutive += 1
        self._latest.append(False)
        ill = self._consecutive >= _MAX_CONSECUTIVE or self._latest.count(False) >= _MAX_FAILED
        if self.state == "open" or (self.state == "closed" and not ill):
            return False
        self.state = "open"
        self.lengthen()
        return True

    def lengthen(self) -> None:
        """Wait longer than the last time, after a check that found nobody or a trial that failed."""
        self.pause = self._range * (1 + self._draw()) / 2
        self._range = min(2 * self._range, _LONGEST_PAUSE)

    def revive(self) -> None:
        """A check found the server alive: the next request shall try."""
        if self.state == "open":
            self.state = "half-open"
