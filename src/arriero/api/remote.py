"""Requests for models of other servers: of their bodies only `model` is looked at, then they are passed on."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Collection, MutableMapping
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from arriero.api.body import is_json, read_body
from arriero.backends.relay import Passage, relay
from arriero.errors import ArrieroError, UnknownModel
from arriero.pool import Pool
from arriero.wire.errors import error_answer
from arriero.wire.headers import Application
from arriero.wire.scope import caller_of, meter_of, note_error
from arriero.wire.sse import Message, Receive, Send

_log = logging.getLogger(__name__)

_PATH = re.compile(r"/v1(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")
"""Endpoints that may be asked of another server; no `..` among them, and nothing that would have to be escaped."""
_QUERY = re.compile(rb"[!-~]*")
OTHER_ENDPOINT = "/v1/{path}"
"""What the meter calls endpoints that this server does not have itself."""


class Remote:
    """ASGI middleware that passes on what is posted for a model of another server, and leaves the rest to the app."""

    def __init__(self, app: Application, pool: Pool, paths: Collection[str], body_limit: int) -> None:
        """`paths` are the app's own endpoints, `body_limit` the bytes that a request may have."""
        self._app = app
        self._pool = pool
        self._paths = paths
        self._body_limit = body_limit

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] != "http" or scope["method"] != "POST" or not self._may_pass(scope):
            await self._app(scope, receive, send)
            return
        started = False

        def watched(message: Message) -> Awaitable[None]:
            nonlocal started
            started = True
            return send(message)

        request = Request(scope, receive)
        try:
            headers = dict(scope["headers"])
            if not is_json(headers.get(b"content-type", b"").decode("latin-1")):
                await self._app(scope, receive, watched)
                return
            data = await read_body(request, headers.get(b"content-length", b""), self._body_limit)
            passage = self._passage(scope, data)
            if passage is None:
                await self._app(scope, _again(data, receive), watched)
            else:
                await relay(passage, scope, receive, watched)
        except ClientDisconnect:  # amid the body
            await Response(status_code=499)(scope, receive, send)  # nobody reads it
        except Exception as error:
            if started:
                raise  # too late to say so; the server logs it and breaks the connection
            if not isinstance(error, ArrieroError):
                _log.exception("a request failed")
            await _answer_error(scope, error, receive, send)

    def _may_pass(self, scope: MutableMapping[str, Any]) -> bool:
        return scope["path"] in self._paths or (
            _PATH.fullmatch(scope["path"]) is not None and _QUERY.fullmatch(scope.get("query_string", b"")) is not None
        )

    def _passage(self, scope: MutableMapping[str, Any], data: bytes) -> Passage | None:
        """What is to be passed on to whom; None for everything that the app has to answer, or refuse."""
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError:
            return None
        name = body.get("model") if isinstance(body, dict) else None
        if not isinstance(name, str) or (found := self._pool.find_upstream(name)) is None:
            return None
        upstream, own_name = found
        path: str = scope["path"]
        meter_of(scope).endpoint = path if path in self._paths else OTHER_ENDPOINT
        if not caller_of(scope).may_use(name):
            raise UnknownModel(name)
        return Passage(upstream=upstream, model=name, own_name=own_name, path=path, body=body)


def _again(data: bytes, receive: Receive) -> Receive:
    """`receive` for an app that has still to read the body."""
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": data, "more_body": False}

    return receive_again


async def _answer_error(scope: MutableMapping[str, Any], error: Exception, receive: Receive, send: Send) -> None:
    note_error(scope, error)
    answer = error_answer(error)
    response = Response(answer.body, answer.status, answer.headers, "application/json")
    await response(scope, receive, send)
