"""`GET /v1/usage`: what was used, of the caller's own, or for an admin of everybody's."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from dataclasses import asdict
from datetime import date
from typing import Any
from urllib.parse import parse_qsl

import orjson

from arriero.core import Caller
from arriero.errors import ArrieroError, Forbidden, InvalidRequest
from arriero.gateway.routes import answer
from arriero.store.ledger import Ledger, totals
from arriero.store.usage import Amounts
from arriero.wire.errors import INVALID_REQUEST, error_answer, error_body
from arriero.wire.headers import Application
from arriero.wire.scope import caller_of, meter_of, note_error
from arriero.wire.sse import Receive, Send

PATH = "/v1/usage"
_PARAMETERS = ("key", "model", "since", "until")


class UsageRoute:
    """ASGI middleware that answers one path itself."""

    def __init__(self, app: Application, ledger: Ledger) -> None:
        self._app = app
        self._ledger = ledger

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        meter_of(scope).endpoint = PATH
        try:
            status, body = await self._answer(scope)
        except ArrieroError as error:
            note_error(scope, error)
            wrong = error_answer(error)
            status, body = wrong.status, wrong.body
        await answer(send, status, body if scope["method"] != "HEAD" else b"")

    async def _answer(self, scope: MutableMapping[str, Any]) -> tuple[int, bytes]:
        if scope["method"] not in ("GET", "HEAD"):
            message = f"Not allowed to {scope['method']} on {PATH}."
            return 405, error_body(message, INVALID_REQUEST, code="method_not_allowed")
        filters = read_filters(scope["query_string"], caller_of(scope))
        rows = await asyncio.to_thread(self._ledger.report, **filters)
        data = [{"object": "usage", **place._asdict(), **_amounts(amounts)} for place, amounts in rows]
        return 200, orjson.dumps({"object": "list", "data": data, "total": _amounts(totals(rows))})


def read_filters(query: bytes, caller: Caller) -> dict[str, str]:
    """What a query asks for; raises `InvalidRequest` for what is no filter, `Forbidden` for other people's usage."""
    filters: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in _PARAMETERS:
            known = ", ".join(f"'{each}'" for each in _PARAMETERS)
            raise InvalidRequest(f"Unknown parameter: '{name}'; known are {known}.", param=name)
        if name in filters:
            raise InvalidRequest(f"Invalid '{name}': it was given more than once.", param=name)
        filters[name] = value if name in ("key", "model") else read_day(value, name)
    if not caller.admin and filters.setdefault("key", caller.id) != caller.id:
        raise Forbidden("You have insufficient permissions for this operation: other keys' usage is an admin's.")
    return filters


def read_day(text: str, param: str) -> str:
    """A day such as 2026-05-31; raises `InvalidRequest` naming `param`."""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise InvalidRequest(
            f"Invalid '{param}': expected a day such as 2026-05-31.", param=param, code="invalid_value"
        ) from None


def _amounts(amounts: Amounts) -> dict[str, float]:
    return {**asdict(amounts), "total_tokens": amounts.tokens, "seconds": round(amounts.seconds, 3)}
