"""An HTTP/1.1 client for one server that passes on bytes as they come, and says how far it got when it fails.

It does what a proxy needs and no more: no redirects, no cookies, no decompression, and no task or timer per piece.
Parsing is llhttp's. Format: RFC 9112.
"""

from __future__ import annotations

import asyncio
import functools
import re
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Self, cast
from urllib.parse import urlsplit

import httptools

Headers = list[tuple[bytes, bytes]]

_MAX_HEAD = 64 * 1024
"""Bytes that the head of an answer may have."""
_HIGH_WATER = 256 * 1024
"""Bytes of an answer that are kept for a reader who is slower than the server; past it the server has to wait."""
_MAX_IDLE = 256
_IDLE_SECONDS = 30.0
"""How long an idle connection is kept where the server does not say how long it keeps it."""
_KEEP_ALIVE = re.compile(rb"timeout=(\d{1,6})")


class Failure(Exception):
    """An exchange went wrong; the text goes on after "The server"."""

    def again(self) -> Self:
        """The same to be kept or raised: one that was raised holds the frames that hold it, a circle."""
        return type(self)(*self.args)


class Unreachable(Failure):
    """No connection came about, so nothing was asked."""


class Dropped(Failure):
    """The server closed the connection before its answer began."""


class TimedOut(Failure):
    """The server was silent for too long."""


class Broken(Failure):
    """What came is no whole HTTP answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds."""

    connect: float = 5.0
    first_byte: float = 600.0
    """Until the answer's head is there, counted from when the request is sent."""
    between_bytes: float = 120.0
    total: float = 3600.0
    """From sending the request to the answer's end."""


@functools.cache
def _trust() -> ssl.SSLContext:
    """The certificates that this machine trusts; reading them takes a while."""
    return ssl.create_default_context()


class Server:
    """One address, and the idle connections to it. To be used in one event loop."""

    def __init__(self, url: str, timeouts: Timeouts) -> None:
        """`url` is http:// or https:// with host, port and nothing else that counts."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._secure = _trust() if parts.scheme == "https" else None
        self._host, self._port = parts.hostname, parts.port or (443 if self._secure else 80)
        self._timeouts = timeouts
        self._idle: deque[Exchange] = deque()

    async def ask(self, request: bytes) -> Exchange:
        """Send a whole request; returns when the head of the answer is there.

        A connection that was idle may have been closed by the server meanwhile: then a new one is tried at once.
        Raises `Failure`. Whoever gets an exchange closes it.
        """
        while (connection := self._take()) is not None:
            try:
                await connection.begin(request)
            except Dropped:
                continue
            return connection
        connection = await self._connect()
        await connection.begin(request)
        return connection

    def close(self) -> None:
        """Drop the idle connections."""
        while self._idle:
            self._idle.pop().abort()

    def keep(self, connection: Exchange) -> None:
        """Take back a connection that can be used again."""
        self._idle.append(connection)
        while len(self._idle) > _MAX_IDLE or not self._idle[0].usable:
            self._idle.popleft().abort()
            if not self._idle:
                break

    def _take(self) -> Exchange | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Exchange:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeouts.connect):
                _, connection = await loop.create_connection(
                    lambda: Exchange(self, self._timeouts), self._host, self._port, ssl=self._secure
                )
        except TimeoutError:
            raise Unreachable("could not be reached in time") from None
        except ssl.SSLError:
            raise Unreachable("could not be reached securely") from None
        except OSError:
            raise Unreachable("could not be reached") from None
        return connection


class Exchange(asyncio.Protocol):
    """A connection and the answer that comes over it: head first, then the body piece by piece."""

    def __init__(self, server: Server, timeouts: Timeouts) -> None:
        self._server = server
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._expires = 0.0
        self._idle_seconds = _IDLE_SECONDS
        self._clear()

    def _clear(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self._head_size = 0
        self._heard = False
        self._head_done = False
        self._complete = False
        self._reusable = False
        self._busy = False
        self._failure: Failure | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._paused = False
        self._deadline = self._end = 0.0
        self._complaint = ""

    @property
    def usable(self) -> bool:
        """Idle, and the server still holds its end open as far as we know."""
        return self._transport is not None and not self._transport.is_closing() and self._loop.time() < self._expires

    @property
    def complete(self) -> bool:
        """Nothing is left to be read."""
        return self._complete and not self._pieces

    def header(self, name: bytes) -> bytes:
        """The value of the first header of that lower-case name, or nothing."""
        return next((value for each, value in self.headers if each == name), b"")

    async def begin(self, request: bytes) -> None:
        """Send a request and wait for the head of the answer; raises `Failure`, and is closed then."""
        self._clear()
        self._busy = True
        self._end = self._loop.time() + self._timeouts.total
        if self._transport is None or self._transport.is_closing():
            raise Dropped("closed the connection")
        try:
            self._transport.write(request)
            while not self._head_done:
                await self._wait(self._timeouts.first_byte, "did not begin to answer in time")
        except BaseException:
            self.abort()
            raise

    async def read(self) -> bytes:
        """All of the body that came since the last call, waiting for it if need be; empty at the end.

        Raises `TimedOut` and `Broken`.
        """
        while not self._pieces:
            if self._complete:
                return b""
            await self._wait(self._timeouts.between_bytes, "stopped amid its answer")
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    def close(self) -> None:
        """Done with the answer: the connection is kept if all of it was read, else dropped."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        transport = self._transport
        if not (self.complete and self._reusable) or transport is None or transport.get_write_buffer_size():
            self.abort()
            return
        self._busy = False
        self._expires = self._loop.time() + self._idle_seconds
        self._server.keep(self)

    def abort(self) -> None:
        """Drop the connection, whatever is under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self, seconds: float, complaint: str) -> None:
        if self._failure is not None:
            raise self._failure.again()
        self._deadline, self._complaint = min(self._loop.time() + seconds, self._end), complaint
        if self._timer is None or self._timer.when() > self._deadline:
            self._arm()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._failure is not None and not self._pieces:
            raise self._failure.again()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._check)

    def _check(self) -> None:
        """The timer is not moved with every piece: it looks whether its time has come, and else waits on."""
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() < self._deadline:
            self._arm()
        else:
            self._fail(TimedOut(self._complaint))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, failure: Failure) -> None:
        if self._complete:
            self._reusable = False  # The answer is whole all the same.
        elif self._failure is None:
            self._failure = failure
        self._wake()
        self.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if not self._busy or self._complete:
            self._fail(Broken("spoke without being asked"))
            return
        self._heard = True
        if not self._head_done:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(Broken("did not answer in HTTP"))
            return
        if self._pieces or self._complete or self._head_done:
            self._wake()
        elif self._head_size > _MAX_HEAD:
            self._fail(Broken("answered with headers without end"))
        if self._size > _HIGH_WATER and not self._paused and not self._complete and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: D102
        self._transport = None
        del self._parser  # it knows this connection: a circle
        framed = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        if self._head_done and not framed and error is None:
            self._complete = True  # Such a body ends with its connection.
            self._wake()
        elif self._heard:
            self._fail(Broken("broke off its answer"))
        else:
            self._fail(Dropped("closed the connection without an answer"))

    # What httptools calls.

    def on_message_begin(self) -> None:  # noqa: D102
        if self._complete:
            raise ValueError("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        if not self._head_done:  # What follows a chunked body is dropped.
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:  # noqa: D102
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self.headers = []  # An interim answer; the real one follows.
        elif 200 <= status < 600:
            self.status = status
            self._head_done = True
        else:
            raise ValueError("no status of a final answer")

    def on_body(self, data: bytes) -> None:  # noqa: D102
        self._pieces.append(data)
        self._size += len(data)

    def on_message_complete(self) -> None:  # noqa: D102
        if not self._head_done:
            return
        self._complete = True
        self._reusable = self._parser.should_keep_alive()
        if lifetime := _KEEP_ALIVE.search(self.header(b"keep-alive")):
            self._idle_seconds = min(_IDLE_SECONDS, int(lifetime[1]) - 1)
