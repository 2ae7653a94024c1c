"""One child process with an engine in it, from its launch to its end, as its parent sees it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Any

from arriero.core import EncodingRequest, EngineStats, GenerationRequest
from arriero.engine.process.child import BEAT
from arriero.engine.process.frames import Channel, pack
from arriero.engine.process.messages import Abort, Ask, Beat, Close, Failed, News, Order, Progress, Ready
from arriero.engine.process.spawned import spawn
from arriero.engine.stream import Stream
from arriero.errors import EngineClosed, EngineDied, ModelLoadError

logger = logging.getLogger(__name__)

_DEATH = "The engine died while it was at work."
_IDLE = 0.05
"""Share of one core; a process whose model works takes more, one that only gives signs of life takes less."""
_LAST_MOMENTS = 5.0
"""Seconds that a child has to end by itself when it is told to."""


class Launched:
    """Speaks with one child. Belongs to one event loop."""

    def __init__(
        self,
        on_progress: Callable[[Any], None],
        on_end: Callable[[], None],
        *,
        name: str,
        silence: float,
        standstill: float,
    ) -> None:
        """`on_progress` hears what the child tells while it opens its engine, `on_end` once that it is gone. `name` is
        what the log calls its model.

        It is taken for frozen after `silence` seconds without a sign of life, or `standstill` seconds in which it
        neither gets on nor computes while requests wait for it. Only seconds in which this process runs count.
        """
        self._name = name
        self._on_end = on_end
        self._on_progress = on_progress
        self._silence = silence
        self._standstill = standstill
        self._channel = Channel(self._receive, self._hung_up)
        self._numbers = itertools.count()
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._error: Exception | None = None
        self._heard = False
        self._processor_seconds = 0.0
        self._streams: dict[int, Stream[Any]] = {}
        self.stats = EngineStats()
        self.ended = asyncio.Event()
        """Set when the process is gone and everybody who waited has been told."""
        self.idle = asyncio.Event()
        """Whether nobody waits for it."""
        self.idle.set()

    async def launch(self, command: Sequence[str], content: Any) -> Ready:
        """Start the process and wait until its engine is started.

        Raises whatever the child says went wrong (`ModelLoadError`, `ConfigError`), or `EngineDied` if it says nothing.
        """
        try:
            self._process, connection = spawn(command)
        except OSError as error:
            self.ended.set()
            raise ModelLoadError(f"No process could be started for the model: {error}.") from None
        self._watch = asyncio.create_task(self._watch_over())
        # At once, and not when the loop comes round: before it does, a server that starts has much to import.
        connection.sendall(b"".join(pack(Order(content, logging.getLogger().getEffectiveLevel()))))
        await asyncio.get_running_loop().create_unix_connection(lambda: self._channel, sock=connection)
        return await asyncio.shield(self._ready)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    async def ask(
        self, request: GenerationRequest | EncodingRequest, num_parts: int
    ) -> AsyncGenerator[list[Any], None]:
        """What happens to a request, as `Engine.generate`; closing the iterator aborts it."""
        if self._error:
            raise _as_death(self._error)
        number = next(self._numbers)
        streamed = True
        if isinstance(request, GenerationRequest) and not request.streamed:
            # The child tells all at once, so that what it sampled is known here whenever a client leaves.
            streamed, request = False, replace(request, streamed=True)
        stream: Stream[Any] = Stream(num_parts, streamed=streamed)
        self._streams[number] = stream
        self.idle.clear()
        self._channel.send(Ask(number, request))
        try:
            while events := await stream.take():
                yield events
        except asyncio.CancelledError:
            if late := stream.rest():  # as in `ModelThread.ask`
                yield late
            raise
        finally:
            if self._streams.pop(number, None):
                self._channel.send(Abort(number))
            self._settle()

    async def stop(self) -> None:
        """Have it end by itself, or end it if it does not; returns when it is gone."""
        if self.ended.is_set():
            return
        self._error = self._error or EngineClosed()
        self._channel.send(Close())
        try:
            async with asyncio.timeout(_LAST_MOMENTS):
                await self.ended.wait()
        except TimeoutError:
            self.kill("It does not end by itself.")
            await self.ended.wait()

    def kill(self, reason: str) -> None:
        """End it at once; `reason` goes to the log."""
        if not self.ended.is_set():
            logger.error("Process %d of %s is ended. %s", self.pid, self._name, reason)
            self._error = self._error or EngineDied(_DEATH)
            self._end_process()

    # What comes from the child

    def _receive(self, message: Any) -> None:
        self._heard = True
        if isinstance(message, News):
            self.stats = message.stats
            for number, what in message.items:
                stream = self._streams.get(number)
                if stream is None:  # it was aborted
                    continue
                if isinstance(what, Exception):
                    del self._streams[number]
                    stream.fail(what)
                    continue
                for event in what:
                    stream.push(event)
                if not stream.num_unfinished:
                    del self._streams[number]
        elif isinstance(message, Beat):
            self.stats = message.stats
            self._processor_seconds = message.processor_seconds
        elif isinstance(message, logging.LogRecord):
            log = logging.getLogger(message.name)
            if log.isEnabledFor(message.levelno):
                log.handle(message)
        elif isinstance(message, Progress):
            self._on_progress(message.content)
        elif isinstance(message, Ready):
            self.stats = message.stats
            self._ready.set_result(message)
        elif isinstance(message, Failed):
            self._error = self._error or message.error

    def _hung_up(self) -> None:
        """It is dead, or as good as dead."""
        self._end_process()
        self._farewell = asyncio.ensure_future(self._bury())

    async def _bury(self) -> None:
        status = await asyncio.to_thread(self._process.wait)
        self._watch.cancel()
        if self._error is None:
            how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
            logger.error("Process %d of %s ended %s.", self.pid, self._name, how)
            self._error = EngineDied(_DEATH)
        if not self._ready.done():
            self._ready.set_exception(self._error)
            self._ready.exception()  # who launched it may have been cancelled
        for stream in self._streams.values():
            stream.fail(_as_death(self._error))
        self._streams.clear()
        self._settle()
        self.ended.set()
        self._on_end()

    def _end_process(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._channel.close()

    def _settle(self) -> None:
        if not self._streams:
            self.idle.set()

    # Whether it gets on

    async def _watch_over(self) -> None:
        """Count the seconds in which this process ran and the child did not; a machine that slept freezes nobody."""
        silent = still = 0.0
        last = self._progress()
        while True:
            await asyncio.sleep(BEAT)
            silent = 0.0 if self._heard else silent + BEAT
            self._heard = False
            now = self._progress()
            busy = now[0] != last[0] or now[1] - last[1] > _IDLE * BEAT
            still = 0.0 if busy or not self._streams else still + BEAT
            last = now
            if silent >= self._silence:
                self.kill(f"It has given no sign of life for {silent:.0f} seconds.")
                return
            if still >= self._standstill:
                self.kill(f"It has not got on for {still:.0f} seconds with {len(self._streams)} requests waiting.")
                return

    def _progress(self) -> tuple[tuple[int, ...], float]:
        stats = self.stats
        return (stats.steps, stats.prompt_tokens, stats.generated_tokens), self._processor_seconds


def _as_death(error: Exception) -> EngineDied:
    """What those hear who wait for the child: of an error of each one's own, for a traceback belongs to one."""
    return type(error)(str(error)) if isinstance(error, EngineDied) else EngineDied(str(error))
