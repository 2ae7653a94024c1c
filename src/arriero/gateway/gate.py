"""Lets requests in while the server can answer them, and tells machines how it is.

`/health/live` is for whoever restarts a server that hangs, `/health/ready` for whoever sends it requests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, MutableMapping
from typing import Any

import orjson

from arriero.errors import Overloaded
from arriero.gateway.metrics import METRICS
from arriero.gateway.routes import LIVE, READY, answer
from arriero.wire.errors import error_answer
from arriero.wire.headers import Application
from arriero.wire.scope import meter_of, note_error
from arriero.wire.sse import Receive, Send

_WATCHED = frozenset({"/health", METRICS})
"""What is answered while the server stops, too."""


class Gate:
    """ASGI middleware: closed until there is an application, open, and shut when the server stops.

    Requests that come too early wait for `patience` seconds, then they are answered 503, as are those that come too
    late. Whoever was let in is waited for.
    """

    def __init__(
        self,
        fault: Callable[[], str | None],
        trouble: Callable[[], str | None] = lambda: None,
        *,
        patience: float = 30.0,
    ) -> None:
        """`fault` says in a few words why the server should be restarted; None: it is well.

        `trouble` says what somebody should look at though requests are answered; None: nothing.
        """
        self._fault = fault
        self._trouble = trouble
        self._patience = patience
        self._app: Application | None = None
        self._opened = asyncio.Event()
        self._shut = False
        self._num_inside = 0
        self._left = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether requests are let in."""
        return self._app is not None and not self._shut

    def open(self, app: Application) -> None:
        """Let requests in to `app`."""
        self._app = app
        self._opened.set()

    async def close(self, grace: float) -> None:
        """Let nobody in any more; wait until those inside have left, for `grace` seconds at most."""
        self._shut = True
        self._opened.set()
        if self._num_inside and grace > 0:
            self._left.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._left.wait(), grace)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer for the server, pass the request on, or turn it away."""
        path = scope["path"]
        if path in (LIVE, READY) and scope["method"] in ("GET", "HEAD"):
            meter_of(scope).endpoint = path
            await (self._tell_live if path == LIVE else self._tell_ready)(send)
            return
        if self._app is None and not self._shut:
            await self._wait()
        if self._app is None or (self._shut and path not in _WATCHED):
            await self._turn_away(scope, send)
            return
        self._num_inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_inside -= 1
            if not self._num_inside:
                self._left.set()

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._opened.wait(), self._patience)

    async def _turn_away(self, scope: MutableMapping[str, Any], send: Send) -> None:
        reason = "The server is stopping." if self._shut else "The model is still loading."
        error = Overloaded(reason, retry_after=1.0 if self._shut else 5.0)
        note_error(scope, error)
        refusal = error_answer(error)
        await answer(send, refusal.status, refusal.body, **{**refusal.headers, "connection": "close"})

    async def _tell_live(self, send: Send) -> None:
        fault = self._fault()
        body = {"status": "failed", "reason": fault} if fault else {"status": "ok"}
        await answer(send, 503 if fault else 200, orjson.dumps(body))

    async def _tell_ready(self, send: Send) -> None:
        state = "ready" if self.ready else "stopping" if self._shut else "loading"
        headers = {"connection": "close"} if self._shut else {}
        body = {"status": state, **({"warning": trouble} if (trouble := self._trouble()) else {})}
        await answer(send, 200 if self.ready else 503, orjson.dumps(body), **headers)
