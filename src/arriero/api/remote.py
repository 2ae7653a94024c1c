"""Requests for models of other servers: of their bodies only `model` is looked at, then they are passed on."""

from __future__ import annotations

import re
from collections.abc import Collection, MutableMapping
from typing import Any

import orjson

from arriero.api.body import is_json, read_body
from arriero.api.failures import guarded
from arriero.backends.relay import Passage, relay
from arriero.errors import UnknownModel, UpstreamLoop
from arriero.pool import Pool
from arriero.wire.headers import Application, new_id
from arriero.wire.scope import caller_of, meter_of
from arriero.wire.sse import Message, Receive, Send

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
        self._pseudonym = new_id("arriero-").encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] != "http" or scope["method"] != "POST" or not self._may_pass(scope):
            await self._app(scope, receive, send)
            return
        await guarded(scope, receive, send, lambda send: self._answer(scope, receive, send))

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if not is_json(headers.get(b"content-type", b"").decode("latin-1")):
            await self._app(scope, receive, send)
            return
        data = await read_body(receive, headers.get(b"content-length", b""), self._body_limit)
        passage = self._passage(scope, data)
        if passage is None:
            await self._app(scope, _again(data, receive), send)
        else:
            await relay(passage, scope, receive, send)

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
        if any(self._pseudonym in value for header, value in scope["headers"] if header == b"via"):
            raise UpstreamLoop(name)
        return Passage(upstream=upstream, model=name, own_name=own_name, path=path, body=body, via=self._pseudonym)


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
