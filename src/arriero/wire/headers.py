"""Response headers that every answer carries, as in the OpenAI reference, and the one of our own."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import quote

from arriero.wire.sse import Message, Receive, Send

Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

IGNORED = "x-arriero-ignored"
_MAX_IGNORED = 1000


class ResponseHeaders:
    """ASGI middleware that gives every HTTP answer `x-request-id`, and those to POST `openai-processing-ms`.

    The time runs until the status line is sent, so for a stream it is the time to the first event.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass the request on, adding the headers to the message that starts the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"x-request-id", new_id("req_").encode())]
                if scope["method"] == "POST":
                    headers.append((b"openai-processing-ms", b"%d" % round((time.perf_counter() - began) * 1000)))
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_with_headers)


def new_id(prefix: str) -> str:
    """An id that nothing else has: 128 random bits. Not from the system's source, which takes longer than the rest."""
    return f"{prefix}{random.getrandbits(128):032x}"


def ignored_header(names: Iterable[str]) -> str:
    """The value of `x-arriero-ignored`: comma-separated, percent-encoded, at most 1,000 characters.

    What does not fit is left out whole, and `...` says so.
    """
    value = ""
    for name in names:
        longer = f"{value},{quote(name, safe='.')}" if value else quote(name, safe=".")
        if len(longer) > _MAX_IGNORED:
            return f"{value},..." if value else "..."
        value = longer
    return value
