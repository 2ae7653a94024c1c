"""Server-sent events: how a streamed answer is framed, kept alive, broken off and given up.

Format: the HTML standard, section 9.2 (server-sent events); `data: [DONE]` and error events as in the
OpenAI reference.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import aclosing
from typing import Any, TypeVar

from arriero.errors import ArrieroError
from arriero.wire.errors import error_answer
from arriero.wire.scope import lost_of, note_error

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": still working\n\n"

_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that collects the answer first would undo the stream
)
_log = logging.getLogger(__name__)


def event(data: bytes) -> bytes:
    """One event; `data` is JSON, so it has no line breaks."""
    return b"data: " + data + b"\n\n"


async def while_connected(scope: MutableMapping[str, Any], receive: Receive, work: Awaitable[T]) -> T | None:
    """What `work` returns, or None when the client left first; `work` is then cancelled and has ended.

    `receive` is ASGI's, after the request's body was read. It is asked only where the server does not tell by itself
    when a connection is lost (`wire.scope.set_lost`), which takes no task.
    """
    task = asyncio.current_task()
    assert task
    lost = lost_of(scope) or asyncio.ensure_future(_disconnected(receive))
    working, left = True, False

    def leave(_: asyncio.Future[None]) -> None:
        nonlocal left
        if working:
            left = True
            task.cancel()

    lost.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not left or task.cancelling() > 1:  # somebody else wants this to end
            raise
        return None
    finally:
        del work  # a task holds the error that it raises, which holds this frame: a circle
        working = False
        lost.remove_done_callback(leave)
        if left:
            task.uncancel()
        if lost is not lost_of(scope):
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)


class EventStream:
    """An ASGI application that streams one answer.

    `frames` yields whole events, as many in one piece as are there to be sent. The status line waits for the
    first piece, so that an error before it keeps its own status and is raised to the caller; after `patience`
    seconds it is sent all the same, and comments go out every `heartbeat` seconds in which nothing else does.
    A later error becomes an error event, and then no `[DONE]` follows. `frames` is closed whatever happens,
    at once when the client leaves.
    """

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        headers: Iterable[tuple[bytes, bytes]] = (),
        *,
        patience: float = 10.0,
        heartbeat: float = 5.0,
    ) -> None:
        self._frames = frames
        self._headers = [*_HEADERS, *headers]
        self._patience = patience
        self._heartbeat = heartbeat
        self._started = self._ended = False
        self._quiet = True
        self._turn = asyncio.Lock()
        self._beating: asyncio.Task[None] | None = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer; raises what `frames` raises before its first piece."""
        self._timer = asyncio.get_running_loop().call_later(self._patience, self._beat, send)
        try:
            # In a task of its own, for whatever wakes a task goes through all the functions that wait in it.
            await while_connected(scope, receive, asyncio.ensure_future(self._send_all(scope, send)))
        finally:
            self._timer.cancel()
            if self._beating:
                self._beating.cancel()
                await asyncio.gather(self._beating, return_exceptions=True)

    def _beat(self, send: Send) -> None:
        """Give a sign of life unless something was sent since the last time, or is waiting to be."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._heartbeat, self._beat, send)
        if self._quiet and not self._turn.locked():
            self._beating = loop.create_task(self._send(send, HEARTBEAT))
        self._quiet = True

    async def _send_all(self, scope: MutableMapping[str, Any], send: Send) -> None:
        ending = DONE
        async with aclosing(self._frames) as frames:
            try:
                async for piece in frames:
                    self._quiet = False
                    await self._send(send, piece)
            except Exception as error:  # Whatever it is, the client of a stream must hear of it.
                if not self._started:
                    raise
                if not isinstance(error, ArrieroError):
                    _log.exception("a stream failed")
                note_error(scope, error)
                ending = event(error_answer(error).body)
        await self._send(send, ending, more=False)

    async def _send(self, send: Send, body: bytes, more: bool = True) -> None:
        await self._turn.acquire()
        try:
            if self._ended:  # the sign of life that this was to be is no longer needed
                return
            self._ended = not more
            if not self._started:
                self._started = True
                await send({"type": "http.response.start", "status": 200, "headers": self._headers})
            await send({"type": "http.response.body", "body": body, "more_body": more})
        finally:
            self._turn.release()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
