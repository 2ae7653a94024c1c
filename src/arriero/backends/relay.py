"""One request through this server to another and its answer back, byte for byte where nothing speaks against it."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import orjson

from arriero.backends.client import Headers
from arriero.backends.upstream import Answer, Outgoing, Upstream
from arriero.backends.usage import Body, Events, Rename
from arriero.core import Meter
from arriero.errors import InvalidRequest, UpstreamError
from arriero.wire.errors import error_answer
from arriero.wire.scope import REQUEST_ID, meter_of, note_error, trace_of
from arriero.wire.sse import Receive, Send, event, while_connected

logger = logging.getLogger(__name__)

_GENERATES = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Endpoints whose streams tell usage when asked with `stream_options`."""
_JSON = frozenset({*_GENERATES, "/v1/embeddings", "/v1/rerank", "/v1/score", "/tokenize", "/detokenize"})
"""Endpoints that answer with JSON or events and nothing else."""
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
_NOT_SENT = _HOP_BY_HOP | frozenset(
    b"host content-length accept-encoding expect cookie authorization x-api-key api-key forwarded x-real-ip "
    b"x-request-id openai-organization openai-project".split()
)
"""What is this server's own business or the caller's secret; who pays is said by whose key it is."""
_NOT_RETURNED = _HOP_BY_HOP | frozenset(
    b"content-length set-cookie date server alt-svc strict-transport-security location x-request-id "
    b"openai-processing-ms".split()
)
_BELONGS_TO_KEY = frozenset((b"authorization", b"openai-organization", b"openai-project"))
_NAMES_TRACE = frozenset((b"traceparent", b"tracestate"))
_EVENTS = b"text/event-stream"
_CHARACTERS_A_TOKEN = 4
"""What an estimate goes by where a server tells nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A request that another server is to answer."""

    upstream: Upstream
    model: str
    """What the caller calls it."""
    own_name: str
    """What the server calls it."""
    path: str
    body: dict[str, Any]
    """JSON; the server gets it written anew, so that both read the same into it."""
    via: bytes
    """What this server calls itself in `Via` (RFC 9110, section 7.6.3), so that it knows a request that comes back."""


async def relay(passage: Passage, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Ask, and pass on what comes; a client that leaves ends it at once.

    Raises `UpstreamError`, `UpstreamTimeout` and `Overloaded` while nothing has been sent.
    """
    await while_connected(scope, receive, _Relay(passage, scope).run(send))


class _Relay:
    def __init__(self, passage: Passage, scope: MutableMapping[str, Any]) -> None:
        self._passage, self._scope = passage, scope
        self._meter: Meter = meter_of(scope)
        self._hides_usage = False
        self._told = False
        self._rename = Rename(passage.model) if passage.upstream.rewrite_answers else None

    async def run(self, send: Send) -> None:
        passage, meter = self._passage, self._meter
        name = passage.upstream.name
        try:
            answer = await passage.upstream.ask(passage.model, self._outgoing())
            if answer.status < 400:
                name = passage.model  # An open entry's names count once a server has known them.
        finally:
            meter.model = name  # Not before it is certain: usage is written under it while the request runs.
        try:
            await self._pass_on(answer, send)
        finally:
            answer.close()
            if answer.status < 400 and not self._told and passage.path in _JSON:
                # The server does not tell, or the caller left before it could.
                meter.prompt_tokens = -(-_num_characters(passage.body) // _CHARACTERS_A_TOKEN)

    def _outgoing(self) -> Outgoing:
        passage = self._passage
        body = passage.body
        if passage.model != passage.own_name:
            body = {**body, "model": passage.own_name}
        if passage.upstream.ask_usage and passage.path in _GENERATES and body.get("stream") is True:
            options = body.get("stream_options")
            if options is None or (isinstance(options, dict) and not options.get("include_usage")):
                self._hides_usage = True
                body = {**body, "stream_options": {**(options or {}), "include_usage": True}}
        query = self._scope.get("query_string", b"")
        path = passage.path.encode()
        return Outgoing(
            path=b"%s?%s" % (path, query) if query else path,
            headers=_request_headers(self._scope, passage.via, forward_key=passage.upstream.forward_key),
            body=orjson.dumps(body),
        )

    async def _pass_on(self, answer: Answer, send: Send) -> None:
        kind = answer.header(b"content-type").partition(b";")[0].strip().lower()
        if 300 <= answer.status < 400:
            raise answer.error("answered with a redirect, which is not followed")
        if answer.status < 300 and self._passage.path in _JSON and kind not in (_EVENTS, b"application/json"):
            raise answer.error("answered with something that is not JSON")
        headers = _answer_headers(answer, limits=self._passage.upstream.forward_key)
        if answer.header(b"content-encoding") not in (b"", b"identity"):
            await self._pass_on_body(answer, headers, send)
        elif kind == _EVENTS:
            await self._pass_on_events(answer, headers, send)
        elif self._rename is not None and kind == b"application/json":
            await self._pass_on_renamed(answer, headers, self._rename, send)
        else:
            await self._pass_on_body(answer, headers, send)

    async def _pass_on_events(self, answer: Answer, headers: Headers, send: Send) -> None:
        events = Events(self._meter, hide_usage=self._hides_usage, rename=self._rename)
        data = await answer.read()  # A stream that breaks off before anything came keeps a status of its own.
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        try:
            while data:
                if whole := events.take(data):
                    await send({"type": "http.response.body", "body": whole, "more_body": True})
                self._told = events.told
                data = await answer.read()
            ending = events.rest()
            self._told = events.told
        except UpstreamError as error:
            note_error(self._scope, error)
            logger.warning("%s", error)
            ending = event(error_answer(error).body)
        await send({"type": "http.response.body", "body": ending, "more_body": False})

    async def _pass_on_body(self, answer: Answer, headers: Headers, send: Send) -> None:
        if length := answer.header(b"content-length"):
            if int(length[:20]) > self._passage.upstream.answer_limit:
                raise self._too_long(answer)
            headers.append((b"content-length", length))
        body = Body(self._meter)
        data = await self._read(answer, body)
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        try:
            while data and not answer.complete:
                await send({"type": "http.response.body", "body": data, "more_body": True})
                data = await self._read(answer, body)
        except UpstreamError as error:
            # The client has to see that the answer is not whole: the web server breaks the connection off.
            note_error(self._scope, error)
            logger.warning("%s", error)
            return
        self._end(answer, body)
        await send({"type": "http.response.body", "body": data, "more_body": False})

    async def _pass_on_renamed(self, answer: Answer, headers: Headers, rename: Rename, send: Send) -> None:
        body, pieces = Body(self._meter), []
        while data := await self._read(answer, body):
            pieces.append(data)
        self._end(answer, body)
        whole = rename.apply(b"".join(pieces))
        headers.append((b"content-length", b"%d" % len(whole)))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": whole, "more_body": False})

    async def _read(self, answer: Answer, body: Body) -> bytes:
        data = await answer.read()
        body.take(data)
        if body.size > self._passage.upstream.answer_limit:
            raise self._too_long(answer)
        return data

    def _end(self, answer: Answer, body: Body) -> None:
        if answer.status >= 400:
            self._meter.first_token_at = None  # A refusal has no tokens.
            return
        self._told = body.end()
        if not self._told and self._passage.path in _GENERATES:
            self._meter.completion_tokens = body.size // _CHARACTERS_A_TOKEN

    def _too_long(self, answer: Answer) -> UpstreamError:
        return answer.error(f"answered with more than {self._passage.upstream.answer_limit} bytes")


def _num_characters(value: Any) -> int:
    """How much text there is in a body, not counting what is no text: parameters, and images in URLs."""
    if isinstance(value, str):
        return 0 if value.startswith("data:") else len(value)
    if isinstance(value, list):
        return sum(_CHARACTERS_A_TOKEN if type(each) is int else _num_characters(each) for each in value)
    if isinstance(value, dict):
        return sum(_num_characters(each) for name, each in value.items() if name not in ("model", "role", "type"))
    return 0


def _request_headers(scope: MutableMapping[str, Any], via: bytes, *, forward_key: bool) -> bytes:
    """The caller's headers without those that end here."""
    dropped = _dropped(_NOT_SENT, scope["headers"])
    if forward_key:
        dropped -= _BELONGS_TO_KEY
    trace = trace_of(scope)
    if trace:
        dropped |= _NAMES_TRACE
    lines = [
        b"%s: %s\r\n" % (name, value)
        for name, value in scope["headers"]
        if name not in dropped and not name.startswith(b"x-forwarded-")
    ]
    if identity := REQUEST_ID.get():
        lines.append(b"x-request-id: %s\r\n" % identity.encode())
    lines += [b"%s: %s\r\n" % each for each in trace]
    lines += (b"via: 1.1 %s\r\n" % via, b"accept-encoding: identity\r\n")
    head = b"".join(lines)
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
        raise InvalidRequest("A header of the request has a line break in it.")
    return head


def _answer_headers(answer: Answer, *, limits: bool) -> Headers:
    """The server's headers without those that are about its connection, its site and its other users.

    Its rate limits are told to those whose `limits` they are, and to whoever ran into them.
    """
    dropped = _dropped(_NOT_RETURNED, answer.headers)
    limits = limits or answer.status == 429
    headers = []
    for name, value in answer.headers:
        if name == b"x-request-id":
            headers.append((b"x-upstream-request-id", value))
        elif not (
            name in dropped or name.startswith(b"access-control-") or (name.startswith(b"x-ratelimit-") and not limits)
        ):
            headers.append((name, value))
    return headers


def _dropped(always: frozenset[bytes], headers: Headers) -> frozenset[bytes]:
    """The names of headers that are not passed on: with those that `Connection` names (RFC 9110, section 7.6.1)."""
    named = [value for name, value in headers if name == b"connection"]
    if not named:
        return always
    return always | {each.strip().lower() for value in named for each in value.split(b",")}
