"""The half that computes: a process that opens an engine as it is told, and answers through a socket.

It lives as long as its parent: when that dies the socket ends, and so does the process, at the latest after the step
that it computes; where the system knows how (Linux), at once. Signals for the whole terminal or service are the
parent's to handle.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import logging
import logging.handlers
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import uvloop

from arriero.core import EncodingRequest, Engine, EngineStats
from arriero.engine.process.frames import Channel
from arriero.engine.process.messages import Abort, Ask, Beat, Close, Failed, News, Order, Progress, Ready
from arriero.errors import ArrieroError, EngineDied, ModelLoadError

logger = logging.getLogger(__name__)

BEAT = 1.0
"""Seconds between two signs of life."""
_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""

Open = Callable[[Any, Callable[[Any], None]], tuple[Engine, Any]]
"""From an order's content, and a function that takes what there is to tell meanwhile, to an engine and what is to be
said about it."""


def run(open_engine: Open, prepare: Callable[[], None] | None = None) -> None:
    """Be the child whose end of the socket is the file descriptor in the first argument; does not return.

    `prepare` is called while nobody waits for the child yet: what it is to open may still be on its way.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent(int(sys.argv[2]))
    faulthandler.enable()
    gc.disable()  # nothing of what is imported is garbage
    if prepare:
        prepare()
    gc.freeze()
    gc.enable()
    uvloop.run(_live(open_engine, socket.socket(fileno=int(sys.argv[1]))))


async def _live(open_engine: Open, connection: socket.socket) -> None:
    await _Child(open_engine).live(connection)


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we said so
        _exit(1)


def _exit(status: int) -> None:
    """At once: tearing down the interpreter and a model takes long, and the system takes back everything anyhow."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


class _Child:
    def __init__(self, open_engine: Open) -> None:
        self._open_engine = open_engine
        self._channel = Channel(self._receive, lambda: _exit(1))
        self._order: asyncio.Future[Order] = asyncio.Future()
        self._closing = asyncio.Event()
        self._engine: Engine | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._outbox: list[tuple[int, Any]] = []
        self._is_to_flush = False

    async def live(self, connection: socket.socket) -> None:
        """From the order to the end; does not return."""
        self._loop = asyncio.get_running_loop()
        await self._loop.create_unix_connection(lambda: self._channel, sock=connection)
        order = await self._order
        self._forward_log(order.log_level)
        beats = asyncio.create_task(self._beat())
        opening = asyncio.create_task(self._start(order.content))
        await self._closing.wait()
        beats.cancel()
        opening.cancel()
        if self._engine:
            await self._engine.close()
        _exit(0)

    async def _start(self, content: Any) -> None:
        try:
            # Not on this thread, which gives signs of life meanwhile.
            engine, about = await asyncio.to_thread(self._open_engine, content, self._tell_progress)
            await engine.start()
        except Exception as error:  # whatever it is, whoever waits for the model must hear of it
            if not isinstance(error, ArrieroError):
                logger.exception("A model could not be loaded.")
                error = ModelLoadError(f"Not loaded: {error}")
            self._die(error)
            return
        self._engine = engine
        gc.collect()
        gc.freeze()  # what is here stays; there is no use in looking at it again
        self._channel.send(Ready(about, engine.context, engine.source_context, engine.stats()))

    def _tell_progress(self, content: Any) -> None:
        self._loop.call_soon_threadsafe(self._channel.send, Progress(content))

    def _forward_log(self, level: int) -> None:
        root = logging.getLogger()
        root.setLevel(level)
        root.handlers = [_Forward(lambda record: self._loop.call_soon_threadsafe(self._channel.send, record))]

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            self._channel.send(Beat(self._stats(), time.process_time()))

    def _stats(self) -> EngineStats:
        try:
            return self._engine.stats() if self._engine else EngineStats()
        except EngineDied as error:
            self._die(error)
            return EngineStats()

    # What the parent says

    def _receive(self, message: Any) -> None:
        if isinstance(message, Ask):
            task = self._loop.create_task(self._answer(message))
            self._tasks[message.number] = task
            task.add_done_callback(lambda _: self._tasks.pop(message.number, None))
        elif isinstance(message, Abort):
            aborted = self._tasks.get(message.number)
            if aborted:
                aborted.cancel()
                aborted.add_done_callback(lambda _: self._tell())  # that there is room again
        elif isinstance(message, Order):
            self._order.set_result(message)
        elif isinstance(message, Close):
            self._closing.set()

    async def _answer(self, ask: Ask) -> None:
        assert self._engine
        try:
            if isinstance(ask.request, EncodingRequest):
                self._tell((ask.number, [await self._engine.encode(ask.request)]))
                return
            async with aclosing(self._engine.generate(ask.request)) as events:  # type: ignore[type-var]
                async for happened in events:
                    self._tell((ask.number, happened))
        except EngineDied as error:
            if not self._closing.is_set():
                self._die(error)
        except ArrieroError as error:
            self._tell((ask.number, error))
        except Exception as error:  # that request's alone: an engine that fails says so
            logger.exception("A request failed in the engine's process.")
            self._tell((ask.number, EngineDied(f"The request failed: {type(error).__name__}.")))

    def _tell(self, *items: tuple[int, Any]) -> None:
        """What is told before the loop comes round again goes in one message: that is what one step has brought."""
        self._outbox += items
        if not self._is_to_flush:
            self._is_to_flush = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        items, self._outbox, self._is_to_flush = self._outbox, [], False
        self._channel.send(News(items, self._stats()))

    def _die(self, error: Exception) -> None:
        """Say why, after all that was to be said before, and end: an engine that failed is of no use to anybody."""
        self._loop.call_soon(self._channel.send, Failed(error))
        self._loop.call_soon(self._channel.finish)


class _Forward(logging.handlers.QueueHandler):
    """Sends log records to the parent, where they are handled like its own."""

    def __init__(self, send: Callable[[logging.LogRecord], object]) -> None:
        super().__init__(queue=None)  # type: ignore[arg-type]  # `enqueue` is all that would use it
        self._send = send

    def enqueue(self, record: logging.LogRecord) -> None:
        """Instead of into a queue."""
        self._send(record)
