"""uvicorn's HTTP connections, with bounds on the time that a client may take.

Nothing is done for a request that comes as it should but to write down when it began: once a second somebody looks
over all connections (`sweep`). httptools, the parser, refuses what request smuggling needs: two lengths, a length
beside chunks, malformed chunks, folded headers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from arriero.wire.errors import INVALID_REQUEST, error_body
from arriero.wire.scope import set_lost

HEAD_LIMIT = 64 * 2**10
"""Bytes that the head of a request may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds that a client may take."""

    head: float
    body: float
    send: float
    """Without taking any of an answer that waits to be sent."""


class Connection(HttpToolsProtocol):
    """One client's connection."""

    def __init__(self, *arguments: Any, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self._head_began: float | None = None
        self._head_size = 0
        self._body_began: float | None = None
        self._trailer_size = 0
        self._stuck_since: float | None = None
        self._lost: asyncio.Future[None] = self.loop.create_future()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # noqa: D102
        super().connection_made(transport)
        self._head_began = time.monotonic()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: D102
        super().connection_lost(error)
        self._lose()

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if self._body_began is None:
            if self._head_began is None:
                self._head_began = time.monotonic()
            self._head_size += len(data)
        super().data_received(data)
        if self._head_began is not None and self._head_size > HEAD_LIMIT:
            self._refuse(431, "Request Header Fields Too Large", "The head of the request is too large.")

    def pause_writing(self) -> None:  # noqa: D102
        self._stuck_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:  # noqa: D102
        self._stuck_since = None
        super().resume_writing()

    # What the parser calls.

    def on_message_begin(self) -> None:  # noqa: D102
        super().on_message_begin()
        set_lost(self.scope, self._lost)  # type: ignore[arg-type]  # for mypy no dictionary but a form

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        if self._body_began is None:
            super().on_header(name, value)
            return
        self._trailer_size += len(name) + len(value)  # it comes behind the body, where nobody looks for it any more
        if self._trailer_size > HEAD_LIMIT:
            self._close()

    def on_headers_complete(self) -> None:  # noqa: D102
        self._head_began, self._head_size, self._trailer_size = None, 0, 0
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise ValueError("a request names one host")  # the parser's own error then, as for a target that is no URL
        super().on_headers_complete()
        self._body_began = time.monotonic()

    def on_message_complete(self) -> None:  # noqa: D102
        self._body_began = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: D102
        self._refuse(400, "Bad Request", "The request is not valid HTTP.")

    # What the server calls.

    def check(self, now: float, timeouts: Timeouts) -> None:
        """Part with a client that takes too long; `now` is `time.monotonic`'s."""
        if self._stuck_since is not None and now - self._stuck_since > timeouts.send:
            self.transport.abort()
        elif self._head_began is not None and now - self._head_began > timeouts.head:
            self._refuse(408, "Request Timeout", "The head of the request did not come in time.")
        elif self._body_began is not None and now - self._body_began > timeouts.body:
            self._refuse(408, "Request Timeout", "The body of the request did not come in time.")

    def _refuse(self, status: int, reason: str, message: str) -> None:
        """Close the connection, with an answer where the fault's request is the next to get one."""
        cycle = self.cycle
        if self._body_began is None:
            is_next = cycle is None or cycle.response_complete
        else:
            is_next = not cycle.response_started and not self.pipeline
        if is_next and not self.transport.is_closing():
            body = error_body(message, INVALID_REQUEST)
            head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self._close()

    def _close(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._lose()
        self.transport.close()

    def _lose(self) -> None:
        if not self._lost.done():
            self._lost.set_result(None)


def sweep(connections: Iterable[Any], timeouts: Timeouts) -> None:
    """Part with all clients that take too long."""
    now = time.monotonic()
    for each in list(connections):
        each.check(now, timeouts)
