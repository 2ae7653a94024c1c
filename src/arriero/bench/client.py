"""An HTTP/1.1 client that does only what measuring needs: send a body, note when each piece of the answer came."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import SplitResult, urlsplit

import httptools

from arriero.errors import ConfigError


@dataclass(slots=True)
class Reply:
    """One response; `pieces` holds the body as it arrived, each with its time on the `time.perf_counter` clock."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        """Everything that arrived."""
        return b"".join(data for _, data in self.pieces)


class Connection(asyncio.Protocol):
    """Carries one request at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._reply = Reply()
        self._done: asyncio.Future[Reply] | None = None

    @property
    def reusable(self) -> bool:
        """The server still holds its end open, and no answer is under way."""
        return self._transport is not None and not self._transport.is_closing() and self._done is None

    async def exchange(self, request: bytes) -> Reply:
        """Send a whole request and wait for its whole answer; raises `ConnectionError`."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("connection lost")
        self._reply = Reply()
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._done
        finally:
            if not self._done.done() or self._done.cancelled() or self._done.exception():
                self.close()
            self._done = None

    def close(self) -> None:
        """Drop the connection, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionAbortedError(f"no HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:  # noqa: D102
        self._transport = None
        framed = self._reply.headers.keys() & {b"content-length", b"transfer-encoding"}
        if self._reply.status and not framed:
            self.on_message_complete()  # Such a body ends with its connection.
        self._fail(ConnectionResetError("connection lost"))

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        self._reply.headers[name.lower()] = value

    def on_headers_complete(self) -> None:  # noqa: D102
        self._reply.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:  # noqa: D102
        self._reply.pieces.append((time.perf_counter(), data))

    def on_message_complete(self) -> None:  # noqa: D102
        if self._transport is not None and not self._parser.should_keep_alive():
            self._transport.close()
        if self._done is not None and not self._done.done():
            self._done.set_result(self._reply)

    def _fail(self, error: ConnectionError) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)


class Endpoint:
    """One server: its address, its head lines, and the idle connections to it."""

    def __init__(self, url: str, *, api_key: str | None = None, new_connection: bool = False) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = _port(parts)
        if parts.scheme not in ("http", "https") or not parts.hostname or port is None:
            raise ConfigError(f"'{url}' is no http:// or https:// address")
        path = parts.path.rstrip("/")
        self._base = path if path.endswith("/v1") else f"{path}/v1"
        self._address = (parts.hostname, port)
        self._secure = parts.scheme == "https"
        self._new_connection = new_connection
        self._idle: list[Connection] = []
        key = f"authorization: Bearer {api_key}\r\n" if api_key else ""
        ending = "close" if new_connection else "keep-alive"
        host = parts.netloc.rpartition("@")[2]
        self._head = f"host: {host}\r\nuser-agent: arriero-bench\r\n{key}connection: {ending}\r\n"

    async def get(self, path: str) -> Reply:
        """The answer to a GET of a path below `/v1`; raises `OSError`."""
        return await self._exchange(f"GET {self._base}{path} HTTP/1.1\r\n{self._head}\r\n".encode())

    async def post(self, path: str, body: bytes) -> Reply:
        """The answer to a POST of JSON; raises `OSError`."""
        length = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        return await self._exchange(f"POST {self._base}{path} HTTP/1.1\r\n{self._head}{length}".encode() + body)

    def close(self) -> None:
        """Drop the idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def _exchange(self, request: bytes) -> Reply:
        connection = await self._connection()
        reply = await connection.exchange(request)
        if self._new_connection:
            connection.close()
        elif connection.reusable:
            self._idle.append(connection)
        return reply

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, *self._address, ssl=self._secure or None)
        return connection


def failure(error: OSError) -> str:
    """What went wrong with a connection, without the addresses, so that failures of a kind count together."""
    if isinstance(error, ssl.SSLError):  # Its errno is not the system's.
        return (getattr(error, "reason", None) or str(error)).lower().replace("_", " ")
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return (error.strerror or str(error)).lower()


def _port(parts: SplitResult) -> int | None:
    try:
        return parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
