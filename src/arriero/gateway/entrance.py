"""Where every request comes in: it gets an id and a meter, and is shown to those who count once it is over."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from arriero.core import Meter
from arriero.wire.headers import Application, new_id
from arriero.wire.scope import REQUEST_ID, meter_of
from arriero.wire.sse import Message, Receive, Send

_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
"""Ids that are taken from a request; nothing that could break a line, a header or a shell's word."""
CLIENT_LEFT = 499
"""The status that is counted for a request whose client did not wait for the end of the answer, as in nginx."""
_LONGEST_BODY = 2**16
"""Bytes of it that are kept at most."""


@dataclass(slots=True)
class Exchange:
    """A request and its answer. Times are in seconds, by `time.perf_counter`."""

    id: str
    scope: MutableMapping[str, Any]
    meter: Meter
    began: float
    ended: float = 0.0
    status: int = 0
    """What the status line said; 0: none was sent."""
    complete: bool = False
    """Whether the last byte of the answer was handed to the server."""
    failed: bool = False
    """Whether the application broke down amid it."""
    body: bytearray | None = None
    """The beginning of what the client sent; None: nobody wants it kept."""

    @property
    def outcome(self) -> int:
        """The status as it is to be counted: a 200 that was broken off is none."""
        if self.failed:
            return 500
        return self.status if self.complete else CLIENT_LEFT

    @property
    def seconds(self) -> float:
        """From the request's head to the last byte of the answer."""
        return self.ended - self.began


Watcher = Callable[[Exchange], None]


class Entrance:
    """ASGI middleware, the outermost: every answer has `x-request-id`, those to POST `openai-processing-ms`.

    The time runs until the status line is sent, so for a stream it is the time to the first event. A request's own
    `x-request-id` is taken where it is well-formed.
    """

    def __init__(
        self,
        app: Application,
        watchers: Sequence[Watcher] = (),
        *,
        keep_bodies: bool = False,
        begin: Callable[[Exchange], Watcher] | None = None,
    ) -> None:
        """Each of `watchers` is shown every exchange, once, when it is over in whatever way. `begin` is shown each when
        it begins, and gives one more who is shown it in the end.
        """
        self._app = app
        self._watchers = watchers
        self._begin = begin
        self._keep_bodies = keep_bodies
        self.num_running = 0
        """Requests that are being answered."""

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(_id_of(scope), scope, meter_of(scope), time.perf_counter())
        REQUEST_ID.set(exchange.id)
        watchers = self._watchers if self._begin is None else (*self._watchers, self._begin(exchange))

        def send_watched(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", exchange.id.encode())]
                if scope["method"] == "POST":
                    milliseconds = round((time.perf_counter() - exchange.began) * 1000)
                    headers.append((b"openai-processing-ms", b"%d" % milliseconds))
                message = {**message, "headers": headers}
            elif not message.get("more_body"):
                exchange.complete = exchange.status != CLIENT_LEFT
            return send(message)

        if self._keep_bodies:
            receive = _keeping(exchange, receive)
        self.num_running += 1
        try:
            await self._app(scope, receive, send_watched)
        except Exception:
            exchange.failed = True
            raise
        finally:
            self.num_running -= 1
            exchange.ended = time.perf_counter()
            for watch in watchers:
                watch(exchange)


def _keeping(exchange: Exchange, receive: Receive) -> Receive:
    """The same `receive`, which leaves what came with the exchange."""
    kept = exchange.body = bytearray()

    async def receive_and_keep() -> Message:
        message = await receive()
        kept.extend(message.get("body", b"")[: _LONGEST_BODY - len(kept)])
        return message

    return receive_and_keep


def _id_of(scope: MutableMapping[str, Any]) -> str:
    """The id that the request brings, or a new one where it brings none or one that is malformed."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode("ascii") if _ID.fullmatch(value) else new_id("req_")
    return new_id("req_")
