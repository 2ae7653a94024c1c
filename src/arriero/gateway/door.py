"""Who may come in: every request is asked for its key and held to its limits, and what it uses is written down."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from arriero.core import Caller, Meter
from arriero.errors import ArrieroError, RateLimited
from arriero.gateway.keyring import Keyring, authorize, caller_with
from arriero.gateway.limits import Allowance
from arriero.gateway.routes import LIVE
from arriero.store.keys import Key
from arriero.store.ledger import Ledger
from arriero.wire.errors import error_answer
from arriero.wire.headers import Application
from arriero.wire.scope import meter_of, note_error, set_caller
from arriero.wire.sse import Message, Receive, Send


class Door:
    """ASGI middleware that lets in who has a key, or everybody while there has never been one."""

    def __init__(
        self,
        app: Application,
        ledger: Ledger,
        *,
        api_key: str | None = None,
        closed: bool = False,
        no_auth: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`api_key` is a key that may do everything. `closed` asks for keys even while there are none; `no_auth` never
        does, and then nobody is an admin. `clock` (seconds) is what limits go by.
        """
        self._app = app
        self._ledger = ledger
        self._keyring = Keyring(api_key)
        self._closed = closed
        self._no_auth = no_auth
        self._clock = clock
        self._everybody = Caller(admin=not no_auth, endpoints=("*", "metrics"))
        self._allowances: dict[str, Allowance] = {}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass the request on, or answer that it may not come in."""
        if scope["type"] != "http":
            raise RuntimeError(f"Nothing here speaks {scope['type']}.")
        if scope["path"] == LIVE and scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        meter = meter_of(scope)
        caller, allowance = self._everybody, None
        try:
            if self.asks_for_keys:
                key = self._keyring.identify(scope["headers"])
                caller = caller_with(key)
                allowance = self._allowance(key) if key else None
            authorize(caller, scope["method"], _path(scope))
            self._admit(allowance, scope, caller)
        except ArrieroError as error:
            note_error(scope, error)
            await _refuse(error, allowance.headers(self._clock()) if allowance else [], send)
            return
        set_caller(scope, caller)
        await self._serve(scope, receive, send, meter, caller, allowance)

    @property
    def asks_for_keys(self) -> bool:
        """Whether requests need a key. Once they do they always will: a store that is lost must not open the door."""
        if self._no_auth:
            return False
        self._keyring.take(self._ledger.keys)
        self._closed = self._closed or not self._keyring.empty
        return self._closed

    def _allowance(self, key: Key) -> Allowance:
        allowance = self._allowances.get(key.id)
        if allowance is None:
            allowance = self._allowances[key.id] = Allowance(key, self._clock())
        allowance.change(key, self._clock())
        return allowance

    def _admit(self, allowance: Allowance | None, scope: MutableMapping[str, Any], caller: Caller) -> None:
        if allowance is None:
            return
        period = allowance.key.budget_period
        try:
            allowance.admit(
                self._clock(),
                spent=lambda: self._ledger.spent(caller.id, period),
                uses_tokens=scope["method"] == "POST",
            )
        except RateLimited:
            self._ledger.end(self._ledger.begin(caller.id, Meter()), failed=True)
            raise

    async def _serve(
        self,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
        meter: Meter,
        caller: Caller,
        allowance: Allowance | None,
    ) -> None:
        status = 0

        def send_with_limits(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if allowance:
                    headers = [*message.get("headers", ()), *allowance.headers(self._clock())]
                    message = {**message, "headers": headers}
            return send(message)

        uses = scope["method"] == "POST"
        account = self._ledger.begin(caller.id, meter)
        if allowance and uses:
            allowance.begin(meter)
        try:
            await self._app(scope, receive, send_with_limits)
        except Exception as error:
            meter.error = meter.error or type(error).__name__
            raise
        finally:
            failed = meter.error is not None or (status >= 400 and status != 499)
            self._ledger.end(account, failed=failed, counts=uses and bool(meter.endpoint))
            if allowance:
                allowance.end(meter, self._clock())


def _path(scope: MutableMapping[str, Any]) -> str:
    """What is asked for, without the place that a proxy gives the whole server."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


async def _refuse(error: ArrieroError, limits: list[tuple[bytes, bytes]], send: Send) -> None:
    answer = error_answer(error)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(answer.body)),
        *((name.encode(), value.encode()) for name, value in answer.headers.items()),
        *limits,
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
