"""The threads that compute a step together."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Team:
    """Threads beside the calling one, which run the same function as it, and sleep meanwhile."""

    def __init__(self, threads: int, work: Callable[[int], None]) -> None:
        """`work(number)` is called by `threads` threads at a time, the caller's number being 0."""
        self._work = work
        self._awake = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._idle = threading.Semaphore(0)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._follow, args=(number,), name="arriero-team", daemon=True)
            for number in range(1, threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(self) -> None:
        """Call `work` in all threads and wait for all."""
        for semaphore in self._awake:
            semaphore.release()
        self._work(0)
        for _ in self._threads:
            self._idle.acquire()

    def close(self) -> None:
        """End the threads."""
        self._closed = True
        for semaphore in self._awake:
            semaphore.release()
        for thread in self._threads:
            thread.join()

    def _follow(self, number: int) -> None:
        while True:
            self._awake[number - 1].acquire()
            if self._closed:
                return
            try:
                self._work(number)
            finally:
                self._idle.release()
