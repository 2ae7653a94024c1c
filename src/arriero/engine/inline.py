"""Work that takes no time worth a thread of its own: it is done on the event loop, a step whenever that comes round."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from arriero.engine.thread import ModelThread, Work
from arriero.errors import EngineClosed


class InlineWork(ModelThread):
    """As `ModelThread`, without one: two threads that both run Python mostly wait for each other.

    There is no spare time in which something is done unasked.
    """

    def __init__(self, open_work: Callable[[], Work]) -> None:
        """`open_work` is called by `start`."""
        super().__init__(open_work)
        self._is_to_come = False

    async def start(self) -> None:
        """Open the work; raises what opening it raises."""
        if self._work or self._closing:
            raise RuntimeError("An engine is started once.")
        self._loop = asyncio.get_running_loop()
        self._work = self._open_work()

    async def close(self, grace: float = 0.0) -> None:
        """Take no more requests, let those that were taken finish for `grace` seconds, then end them."""
        self._closing = True
        if grace > 0:
            await self._wait_until_idle(grace)
        work, self._work = self._work, None
        if work:
            work.close()
        self._fail_streams(EngineClosed())

    def _submit(self, submit: Callable[[], Any]) -> Any:
        handle = super()._submit(submit)
        self._come_round()
        return handle

    def _come_round(self) -> None:
        """Make a step after everything that the loop has to do now, such as passing on what the last one brought."""
        if not self._is_to_come:
            self._is_to_come = True
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        self._is_to_come = False
        work = self._work
        if not work or self._death:
            return
        try:
            step = work.schedule()
            if step:
                self._deliver(work.update(step, work.execute(step)))
                self._come_round()
        except Exception as error:  # whatever went wrong must reach those who wait
            self._die(error, self._loop.create_future())
