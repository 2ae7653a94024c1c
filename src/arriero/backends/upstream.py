"""A model that other servers answer for: which of them is asked, and what is done when it fails."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import orjson

from arriero.backends.circuit import Circuit
from arriero.backends.client import Dropped, Exchange, Failure, Headers, Server, TimedOut, Timeouts, Unreachable
from arriero.errors import ConfigError, Overloaded, UpstreamError, UpstreamTimeout
from arriero.upstream_tables import Address, UpstreamTable

logger = logging.getLogger(__name__)

_GATEWAY_ERRORS = (502, 503, 504)
_SHORT_REST = 1.0
"""Seconds for a server that says that it has no room, and not for how long."""
_CHECK_SECONDS = 5.0
"""How long a server may take to tell that it is alive, or which models it has."""
_LISTED_SECONDS = 60.0
"""How long a list of models is believed."""
_LONGEST_LIST = 8 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A request on its way, without what differs from server to server."""

    path: bytes
    """As our own API has it: `/v1/...`, or below the server's root; with a query."""
    headers: bytes
    """Whole lines."""
    body: bytes


class Endpoint:
    """One server that answers for a model, and how it has been doing."""

    def __init__(self, address: Address, timeouts: Timeouts, environment: Mapping[str, str]) -> None:
        """Raises `ConfigError` where the environment has no key."""
        parts = urlsplit(address.url)
        self.place = parts.netloc
        self.weight = address.weight
        self.num_outstanding = 0
        self.num_asked = self.num_failed = 0
        """Requests since the start, and how many of them it did not answer as it should."""
        self.circuit = Circuit()
        self.server = Server(address.url, timeouts)
        self._checks = Server(
            address.url,
            Timeouts(
                connect=_CHECK_SECONDS,
                first_byte=_CHECK_SECONDS,
                between_bytes=_CHECK_SECONDS,
                total=_CHECK_SECONDS,
            ),
        )
        self._base = parts.path.encode()
        self._root = self._base.removesuffix(b"/v1")
        key = _key(address, environment)
        self._key_line = b"authorization: Bearer %s\r\n" % key if key else b""
        self._host_line = b"host: %s\r\n" % parts.netloc.encode()

    def enter(self) -> None:
        """A request goes to the server."""
        self.num_outstanding += 1
        self.num_asked += 1
        self.circuit.begin()

    def leave(self) -> None:
        """It is over, in whatever way."""
        self.num_outstanding -= 1
        self.circuit.give_up()

    def request(self, outgoing: Outgoing) -> bytes:
        """The bytes of a POST."""
        length = b"content-length: %d\r\n\r\n" % len(outgoing.body)
        head = self._head(b"POST", outgoing.path)
        return b"".join((head, outgoing.headers, length, outgoing.body))

    def _head(self, method: bytes, path: bytes) -> bytes:
        target = self._base + path[3:] if path.startswith(b"/v1/") else self._root + path
        return b"%s %s HTTP/1.1\r\n%s%s" % (method, target, self._host_line, self._key_line)

    async def get(self, path: bytes) -> tuple[int, bytes]:
        """Status and body of something that is soon told; raises `Failure`."""
        exchange = await self._checks.ask(self._head(b"GET", path) + b"accept: application/json\r\n\r\n")
        try:
            body = bytearray()
            while (data := await exchange.read()) and len(body) < _LONGEST_LIST:
                body += data
            return exchange.status, bytes(body)
        finally:
            exchange.close()

    async def is_alive(self) -> bool:
        """Whether the server answers at all."""
        try:
            status, _ = await self.get(b"/health")
            if status in (404, 405):
                status, _ = await self.get(b"/v1/models")
        except Failure:
            return False
        return status < 500

    def close(self) -> None:
        """Drop idle connections."""
        self.server.close()
        self._checks.close()


class Upstream:
    """A name, or all names that begin alike, for which other servers answer. To be used in one event loop."""

    def __init__(self, table: UpstreamTable, environment: Mapping[str, str]) -> None:
        """Raises `ConfigError` where the environment has no key."""
        self.name = table.name
        self.forward_key = table.forward_key
        self.ask_usage = table.ask_usage
        self.rewrite_answers = table.rewrite_answers
        self.answer_limit = int(table.answer_limit)
        self.created = int(time.time())
        self._own = table.model or ("*" if self.is_open else table.name)
        timeouts = Timeouts(
            connect=table.connect_timeout,
            first_byte=table.first_byte_timeout,
            between_bytes=table.between_bytes_timeout,
            total=table.total_timeout,
        )
        try:
            self.endpoints = [Endpoint(address, timeouts, environment) for address in table.upstream]
        except ConfigError as error:
            raise ConfigError(f"the model {self.name!r}: {error}") from None
        self._checking: set[asyncio.Task[None]] = set()
        self._listed: list[str] = []
        self._listed_until = 0.0
        self._listing = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        """Whether it answers to all names that begin alike."""
        return self.name.endswith("*")

    def own_name(self, name: str) -> str | None:
        """What the servers call the model that callers call `name`; None when it is none of theirs."""
        return _translate(name, self.name, self._own)

    async def ask(self, model: str, outgoing: Outgoing) -> Answer:
        """The beginning of an answer from the server with the least to do, or from the next if that one fails.

        Asks again only what no server has begun to answer. `model` is the caller's name for it.
        Raises `UpstreamError`, `UpstreamTimeout`, `Overloaded`.
        """
        tried: list[Endpoint] = []
        failure: Failure | None = None
        while (endpoint := self._choose(tried)) is not None:
            tried.append(endpoint)
            endpoint.enter()
            try:
                exchange = await endpoint.server.ask(endpoint.request(outgoing))
            except BaseException as error:
                endpoint.leave()
                if not isinstance(error, Failure):
                    raise
                failure = error.again()
                self.fail(endpoint, error)
                if not isinstance(error, Unreachable | Dropped):
                    break
                continue
            self._judge(endpoint, exchange)
            answer = Answer(self, endpoint, exchange, model)
            if exchange.status not in (429, *_GATEWAY_ERRORS) or self._choose(tried) is None:
                return answer
            answer.close()
        if failure is None:
            pause = min((each.circuit.pause for each in self.endpoints), default=1.0)
            raise Overloaded(f"The servers of the model '{model}' fail at the moment.", retry_after=pause)
        raise _error(model, failure)

    async def models(self) -> list[str]:
        """The names that it answers to, asked of a server if need be and remembered for a minute."""
        if not self.is_open:
            return [self.name]
        async with self._listing:
            if time.monotonic() >= self._listed_until:
                names = await self._ask_models()
                self._listed = self._listed if names is None else names
                self._listed_until = time.monotonic() + _LISTED_SECONDS
        return self._listed

    async def close(self) -> None:
        """Stop checking, and drop idle connections."""
        for task in self._checking:
            task.cancel()
        await asyncio.gather(*self._checking, return_exceptions=True)
        for endpoint in self.endpoints:
            endpoint.close()

    def fail(self, endpoint: Endpoint, failure: Failure | str) -> None:
        """Note that a server did not answer as it should."""
        endpoint.num_failed += 1
        if endpoint.circuit.fail():
            logger.warning("%s, which answers for '%s', %s; it is left alone", endpoint.place, self.name, failure)
            task = asyncio.create_task(self._check(endpoint))
            self._checking.add(task)
            task.add_done_callback(self._checking.discard)

    def _choose(self, tried: Sequence[Endpoint]) -> Endpoint | None:
        able = [each for each in self.endpoints if each not in tried and each.circuit.admits]
        if len(able) < 2:
            return able[0] if able else None
        able = [each for each in able if not each.circuit.rests] or able
        random.shuffle(able)
        return min(able, key=lambda each: (each.num_outstanding + 1) / each.weight)

    def _judge(self, endpoint: Endpoint, exchange: Exchange) -> None:
        pause = _retry_after(exchange)
        if exchange.status == 429 or (exchange.status == 503 and pause is not None):
            endpoint.circuit.rest(_SHORT_REST if pause is None else pause)
        elif exchange.status in _GATEWAY_ERRORS:
            self.fail(endpoint, f"answered with {exchange.status}")
        else:
            endpoint.circuit.succeed()

    async def _check(self, endpoint: Endpoint) -> None:
        while True:
            await asyncio.sleep(endpoint.circuit.pause)
            if await endpoint.is_alive():
                endpoint.circuit.revive()
                return
            endpoint.circuit.lengthen()

    async def _ask_models(self) -> list[str] | None:
        for endpoint in self.endpoints:
            try:
                status, body = await endpoint.get(b"/v1/models")
                listed = orjson.loads(body)["data"] if status == 200 else None
            except (Failure, orjson.JSONDecodeError, LookupError, TypeError):
                continue
            if isinstance(listed, list):
                ids = (each.get("id") for each in listed if isinstance(each, dict))
                names = (_translate(each, self._own, self.name) for each in ids if isinstance(each, str))
                return [name for name in names if name]
        return None


class Answer:
    """What one server answers, until it is closed."""

    def __init__(self, upstream: Upstream, endpoint: Endpoint, exchange: Exchange, model: str) -> None:
        self._upstream, self._endpoint, self._model = upstream, endpoint, model
        self._exchange = exchange
        self.status = exchange.status
        self.headers: Headers = exchange.headers
        """With lower-case names."""

    @property
    def complete(self) -> bool:
        """Nothing is left to be read."""
        return self._exchange.complete

    def header(self, name: bytes) -> bytes:
        """The value of the first header of that lower-case name, or nothing."""
        return self._exchange.header(name)

    async def read(self) -> bytes:
        """More of the body, empty at its end; raises `UpstreamError` and `UpstreamTimeout`."""
        try:
            return await self._exchange.read()
        except Failure as error:
            self._upstream.fail(self._endpoint, error)
            raise _error(self._model, error) from None

    def error(self, complaint: str) -> UpstreamError:
        """The error for an answer that is whole and cannot be passed on."""
        return UpstreamError(f"The server of the model '{self._model}' {complaint}.")

    def close(self) -> None:
        """Give the connection back, or drop it where more was to come."""
        self._endpoint.leave()
        self._exchange.close()


def _error(model: str, failure: Failure) -> UpstreamError:
    kind = UpstreamTimeout if isinstance(failure, TimedOut) else UpstreamError
    return kind(f"The server of the model '{model}' {failure}.")


def _translate(name: str, source: str, target: str) -> str | None:
    """The name in the other naming; both are names, or both end with a * that stands for the rest."""
    if not source.endswith("*"):
        return target if name == source else None
    prefix = source[:-1]
    rest = name.removeprefix(prefix)
    return target[:-1] + rest if name.startswith(prefix) and rest else None


def _key(address: Address, environment: Mapping[str, str]) -> bytes:
    key = address.key
    if address.key_env is not None:
        key = environment.get(address.key_env, "").strip()
        if not key.isascii() or not key.isprintable() or not key or " " in key:
            raise ConfigError(f"the environment variable {address.key_env} holds no key")
    return (key or "").encode()


def _retry_after(exchange: Exchange) -> float | None:
    """Seconds that the server asks to wait, as a number or a date (RFC 9110, section 10.2.3)."""
    value = exchange.header(b"retry-after").decode("latin-1").strip()
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
