"""How fast requests have ended lately, to tell callers of a full engine when to come back."""

from __future__ import annotations

FADE = 0.9
"""How much each request that ends leaves of what is known of earlier ones."""
LONGEST_RETRY_AFTER = 60.0


class Pace:
    """The ratio of two sums that fade as requests end: seconds of work, and requests."""

    def __init__(self) -> None:
        self._busy_seconds = 0.0
        self._num_ended = 0.0

    def work(self, seconds: float) -> None:
        """A step took so long."""
        self._busy_seconds += seconds

    def end(self) -> None:
        """A request has ended."""
        self._num_ended = (self._num_ended + 1) * FADE
        self._busy_seconds *= FADE

    def retry_after(self, num_waiting: int) -> float:
        """Seconds in which, at this pace, as many requests end as are waiting now; between 1 and 60."""
        pace = self._busy_seconds / self._num_ended if self._num_ended else 0.0
        return min(max(1.0, num_waiting * pace), LONGEST_RETRY_AFTER)
