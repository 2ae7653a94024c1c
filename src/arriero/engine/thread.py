"""A model in a thread of its own, and the event loop's end of everything that is asked of it.

The life of a step, in the model thread: it is planned, computed and taken in, and all events go to the event loop in
one call. A lock guards the planning; it is held for bookkeeping only, never while the model computes, so the loop
never waits on the model.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any, Protocol

from arriero.core import Encoded, EngineState, EngineStats
from arriero.engine.stream import Stream
from arriero.errors import ArrieroError, EngineClosed, EngineDied, ModelLoadError

logger = logging.getLogger(__name__)

PAUSE = 0.05
"""Seconds after which spare time begins: who waits for an answer to ask again, as programs do, is not in its way."""


class Work(Protocol):
    """What is to be done in the thread. All but `execute` and `close` are called with the lock held."""

    def schedule(self) -> Any | None:
        """The next step; None when there is nothing to do until somebody asks."""

    def spare(self) -> Any | None:
        """A step to be made when nobody has asked for a while; None when there is nothing more to do."""

    def execute(self, step: Any) -> Any:
        """Compute it."""

    def update(self, step: Any, results: Any) -> Sequence[tuple[Any, Any]]:
        """Take in what came of it: (a request's handle, what happened to it), in order."""

    def abort(self, handle: Any) -> None:
        """Forget a request."""

    def stats(self) -> EngineStats:
        """Counts as of now."""

    def close(self) -> None:
        """Release the model."""


class ModelThread:
    """Does the work that it opens, for any number of requests; what goes wrong in it reaches those who wait.

    It belongs to the event loop that starts it and can be started once.
    """

    def __init__(self, open_work: Callable[[], Work]) -> None:
        """`open_work` is called by `start`, in the thread."""
        self._open_work = open_work
        self._changed = threading.Condition()  # guards these four and all that the work plans by
        self._work: Work | None = None
        self._death: EngineDied | None = None
        self._closing = False
        self._ending = False
        self._resting = False  # the thread's alone: nobody has asked for a while

        self._thread: threading.Thread | None = None
        self._streams: dict[Any, Stream[Any]] = {}  # unfinished requests; this and the rest is the loop's alone
        self._idle = asyncio.Event()
        self._idle.set()
        self._ended = asyncio.Event()

    async def start(self) -> None:
        """Open the work and wait until it is ready; raises `ModelLoadError` when it cannot be."""
        if self._thread or self._closing:
            raise RuntimeError("An engine is started once.")
        self._loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="arriero-model", daemon=True)
        self._thread.start()
        await ready

    async def close(self, grace: float = 0.0) -> None:
        """Take no more requests, let those that were taken finish for `grace` seconds, then end them.

        Returns when the thread is gone. May be called again, and at any time.
        """
        with self._changed:
            self._closing = True
        if self._thread is None:
            return
        if grace > 0:
            await self._wait_until_idle(grace)
        with self._changed:
            self._ending = True
            self._changed.notify()
        await self._ended.wait()
        self._thread.join()
        self._fail_streams(EngineClosed())

    async def ask(
        self, submit: Callable[[], Any], num_parts: int, *, streamed: bool = True
    ) -> AsyncGenerator[list[Any], None]:
        """Everything that happened to a request since the last look, until all its parts are finished.

        `submit` is called with the lock held, hands the request to the work and returns its handle; whatever it raises
        is raised here. Closing the iterator aborts the request. `streamed` as in `GenerationRequest`.

        Raises:
            EngineDied: the work failed or was closed, before or while it was about the request.
        """
        handle = self._submit(submit)
        stream: Stream[Any] = Stream(num_parts, streamed=streamed)
        self._streams[handle] = stream
        self._idle.clear()
        try:
            while events := await stream.take():
                yield events
        except asyncio.CancelledError:
            if late := stream.rest():  # who counts must hear of what was sampled for a request that is broken off
                yield late
            raise
        finally:
            if self._streams.pop(handle, None):
                self._settle()
                with self._changed:
                    if self._work:
                        self._work.abort(handle)
                        self._changed.notify()

    async def encoded(self, submit: Callable[[], Any]) -> Encoded:
        """What an encoding request comes to; `submit` and errors as `ask`. Cancelling the task aborts the request."""
        async with aclosing(self.ask(submit, 1)) as events:
            encoded: Encoded = (await anext(events))[0]
            return encoded

    @property
    def state(self) -> EngineState:
        """How the work is."""
        if self._closing:
            return "closed"
        return "failed" if self._death else "ready" if self._work else "starting"

    def stats(self) -> EngineStats:
        """Counts as of now; raises `EngineDied` when the work failed."""
        with self._changed:
            if self._death:
                raise EngineDied(str(self._death))
            return self._work.stats() if self._work else EngineStats()

    # On the loop

    async def _wait_until_idle(self, seconds: float) -> None:
        """Wait for the requests that were taken, no longer than this."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    def _submit(self, submit: Callable[[], Any]) -> Any:
        with self._changed:
            if self._death:
                raise EngineDied(str(self._death))
            if self._closing:
                raise EngineClosed("The engine is closed.")
            if not self._work:
                raise EngineDied("The engine is not started.")
            handle = submit()
            self._changed.notify()
        return handle

    def _deliver(self, events: Sequence[tuple[Any, Any]]) -> None:
        for handle, event in events:
            stream = self._streams.get(handle)
            if stream:  # else it was aborted
                stream.push(event)
                if not stream.num_unfinished:
                    del self._streams[handle]
        self._settle()

    def _fail_streams(self, error: EngineDied) -> None:
        for stream in self._streams.values():
            stream.fail(error)
        self._streams.clear()
        self._settle()

    def _settle(self) -> None:
        if not self._streams:
            self._idle.set()

    # In the thread

    def _run(self, ready: asyncio.Future[None]) -> None:
        """The thread from first to last; whatever goes wrong in it must reach those who wait."""
        try:
            work = self._open_work()
            try:
                with self._changed:
                    self._work = work
                self._post(_resolve, ready, None)
                while step := self._next_step(work):
                    self._advance(work, step)
            finally:
                work.close()
        except BaseException as error:
            self._die(error, ready)
        finally:
            self._post(self._ended.set)

    def _next_step(self, work: Work) -> Any | None:
        """Sleep until there is something to do; None when the engine ends."""
        with self._changed:
            while not self._ending:
                if step := work.schedule():
                    self._resting = False
                    return step
                if self._resting and (step := work.spare()):
                    return step
                self._resting = not self._changed.wait(None if self._resting else PAUSE)
            return None

    def _advance(self, work: Work, step: Any) -> None:
        results = work.execute(step)
        with self._changed:
            events = work.update(step, results)
        if events:
            self._post(self._deliver, events)

    def _die(self, error: BaseException, ready: asyncio.Future[None]) -> None:
        """Tell everybody, once and for all; the details go to the log."""
        logger.error("The model thread ended.", exc_info=error)
        death = error if isinstance(error, EngineDied) else EngineDied("The engine failed while it was at work.")
        with self._changed:
            self._death = death
        self._post(
            _resolve, ready, error if isinstance(error, ArrieroError) else ModelLoadError(f"Not loaded: {error}")
        )
        self._post(self._fail_streams, death)

    def _post(self, callback: Callable[..., object], *arguments: object) -> None:
        """Have the loop call something; when the loop is gone, so is everybody who could ask for more."""
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            self._ending = True


def _resolve(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():  # its waiter was cancelled, or it was resolved before
        return
    if error:
        future.set_exception(error)
    else:
        future.set_result(None)


class InProcess:
    """What engines of this process have in common, whatever their model thread does."""

    def __init__(self, thread: ModelThread) -> None:
        self._thread = thread

    @property
    def state(self) -> EngineState:
        """See `Engine.state`."""
        return self._thread.state

    async def start(self) -> None:
        """Open the model in its thread and wait until it is ready; raises `ModelLoadError`."""
        await self._thread.start()

    async def close(self, grace: float = 0.0) -> None:
        """Take no more requests, let those that were taken finish for `grace` seconds, then end them.

        Returns when the model thread is gone. May be called again, and at any time.
        """
        await self._thread.close(grace)

    def stats(self) -> EngineStats:
        """Counts as of now; raises `EngineDied` when the engine failed."""
        return self._thread.stats()

    def memory(self) -> None:
        """None: it shares the memory of this process."""
