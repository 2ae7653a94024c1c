"""One OpenAI-compatible endpoint, as a terminal asks it: which models it has, and answers as they come."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import orjson
from pydantic import ValidationError

from arriero.backends.client import Exchange, Failure, Timeouts, Unreachable
from arriero.backends.upstream import Endpoint, Outgoing
from arriero.config_description import variable
from arriero.errors import ArrieroError, ConfigError, UpstreamError
from arriero.upstream_tables import Address
from arriero.wire.headers import IGNORED

_LONGEST_ANSWER = 64 * 2**20
_LONGEST_COMPLAINT = 1000
_KEY = variable("api_key")
_HEADERS = b"content-type: application/json\r\naccept: text/event-stream, application/json\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one event of an answer adds."""

    text: str = ""
    reasoning: str = ""
    """What the model thought before it answered, where the server tells that apart."""
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    ignored: tuple[str, ...] = ()
    """Parameters of the request that have no effect on this server, where it says so."""


class Nobody(UpstreamError):
    """Nothing listens at the address."""


class Refused(UpstreamError):
    """The server answered with an error; the text says what it told."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Remote:
    """An endpoint and the key that it is shown. To be used in one event loop."""

    def __init__(self, url: str, *, key: str | None = None, key_env: str | None = None) -> None:
        """`url` may lack http:// and /v1; `key_env` is the variable that holds the key.

        Raises `ConfigError` for what is no address or no key.
        """
        try:
            given = {"url": url if "://" in url else f"http://{url}", "key": key, "key_env": key_env}
            address = Address.model_validate(given)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = "the key" if "key" in fault["loc"] else f"'{url}'"
            raise ConfigError(f"{where} is {fault['msg'].removeprefix('Value error, ')}") from None
        self.url = address.url
        self.has_key = address.has_key
        self._endpoint = Endpoint(address, Timeouts(), os.environ)
        self._knows_usage = True

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of what is told within seconds, below `/v1/` or at the root; raises `UpstreamError`."""
        try:
            return await self._endpoint.get(path.encode())
        except Failure as error:
            raise self._failed(error) from None

    async def health(self, route: str) -> dict[str, Any]:
        """What `/health/live` or `/health/ready` tell, `status` above all; nothing by servers of other kinds.

        Raises `UpstreamError`.
        """
        status, body = await self.get(f"/health/{route}")
        try:
            value = orjson.loads(body) if status in (200, 503) else {}
        except orjson.JSONDecodeError:
            return {}
        return value if isinstance(value, dict) else {}

    async def models(self, capability: str | None = None) -> list[str]:
        """The ids of its models, without those that it says lack `capability`; raises `UpstreamError`."""
        status, body = await self.get("/v1/models")
        if status != 200:
            raise self._refused(status, body)
        try:
            listed = orjson.loads(body)["data"]
            return [str(each["id"]) for each in listed if capability in (None, *each.get("capabilities", [capability]))]
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            raise UpstreamError(
                f"{self.url}/models is no list of models: is this an OpenAI-compatible server?"
            ) from None

    async def answer(self, body: Mapping[str, Any]) -> AsyncGenerator[Piece, None]:
        """The pieces of the answer to a chat; whoever closes the generator early ends the answer.

        Raises `UpstreamError`, also amid an answer.
        """
        exchange = await self._ask(body)
        try:
            if ignored := exchange.header(IGNORED.encode()).decode("latin-1"):
                yield Piece(ignored=tuple(unquote(name) for name in ignored.split(",")))
            if exchange.header(b"content-type").startswith(b"text/event-stream"):
                async for event in self._events(exchange):
                    yield _piece(event, "delta")
            else:  # It does not stream.
                yield _piece(self._parsed(await self._whole(exchange)), "message")
        finally:
            exchange.close()

    async def close(self) -> None:
        """Drop the connections."""
        self._endpoint.close()
        await asyncio.sleep(0)  # They go in the next turn of the loop.

    async def _ask(self, body: Mapping[str, Any]) -> Exchange:
        usage = {"stream_options": {"include_usage": True}} if self._knows_usage else {}
        content = orjson.dumps({**body, "stream": True, **usage})
        request = self._endpoint.request(Outgoing(path=b"/v1/chat/completions", headers=_HEADERS, body=content))
        try:
            exchange = await self._endpoint.server.ask(request)
        except Failure as error:
            raise self._failed(error) from None
        if exchange.status == 200:
            return exchange
        try:
            complaint = await self._whole(exchange)
        finally:
            exchange.close()
        if exchange.status in (400, 422) and usage and b"stream_options" in complaint:
            self._knows_usage = False
            return await self._ask(body)
        raise self._refused(exchange.status, complaint)

    async def _events(self, exchange: Exchange) -> AsyncGenerator[dict[str, Any], None]:
        """The JSON objects of a stream of server-sent events, whose lines may end in any of three ways."""
        rest = b""
        while data := await self._read(exchange):
            *lines, rest = (rest + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                content = line.removeprefix(b"data:").strip()
                if content == b"[DONE]":
                    return
                if line.startswith(b"data:"):
                    yield self._parsed(content)

    async def _whole(self, exchange: Exchange) -> bytes:
        body = bytearray()
        while (data := await self._read(exchange)) and len(body) < _LONGEST_ANSWER:
            body += data
        return bytes(body)

    async def _read(self, exchange: Exchange) -> bytes:
        try:
            return await exchange.read()
        except Failure as error:
            raise self._failed(error) from None

    def _parsed(self, content: bytes) -> dict[str, Any]:
        try:
            value = orjson.loads(content)
        except orjson.JSONDecodeError:
            raise UpstreamError(f"{self.url} sent something that is no JSON: {_brief(content)}") from None
        if not isinstance(value, dict):
            raise UpstreamError(f"{self.url} sent something that is no answer: {_brief(content)}")
        if value.get("error"):
            raise UpstreamError(f"{self.url} broke off: {_complaint(content)}")
        return value

    def _failed(self, failure: Failure) -> ArrieroError:
        if isinstance(failure, Unreachable):
            return Nobody(f"the server {self.url} {failure}")
        return UpstreamError(f"the server {self.url} {failure}")

    def _refused(self, status: int, body: bytes) -> ArrieroError:
        said = _complaint(body)
        if status == 401 and not self.has_key:
            return Refused(f"{self.url} asks for a key: give it with --api-key, or in {_KEY}. It says: {said}", status)
        return Refused(f"{self.url} answered {status}: {said}", status)


def _piece(event: Mapping[str, Any], part: str) -> Piece:
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    said = choice.get(part)
    said = said if isinstance(said, dict) else {}
    usage, reason = event.get("usage"), choice.get("finish_reason")
    return Piece(
        text="".join(_texts(said, "content", "refusal")),
        reasoning=next(_texts(said, "reasoning_content", "reasoning"), ""),
        finish_reason=reason if isinstance(reason, str) else None,
        usage=usage if isinstance(usage, dict) else None,
    )


def _texts(said: Mapping[str, Any], *names: str) -> Iterator[str]:
    return (said[name] for name in names if isinstance(said.get(name), str))


def _complaint(body: bytes) -> str:
    """What a server says that is wrong: the message of an OpenAI error, or the body as it is."""
    try:
        error = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _brief(body)
    error = error.get("error", error) if isinstance(error, dict) else error
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else _brief(body)


def _brief(body: bytes) -> str:
    text = " ".join(body[:_LONGEST_COMPLAINT].decode("utf-8", "replace").split())
    return text or "nothing more is said"
