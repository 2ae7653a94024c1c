"""A server that answers as badly as it is told to, and an Arriero in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn

from arriero.app.web import create_app
from arriero.backends.upstream import Upstream
from arriero.config import Settings
from arriero.core import Meter
from arriero.upstream_tables import UpstreamTable
from arriero.wire.scope import meter_of

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


@dataclass
class Asked:
    """A request as it arrived."""

    line: str
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter
    connection: int
    """Number of the connection, from 0."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def write(self, data: bytes | str) -> None:
        self.writer.write(data.encode() if isinstance(data, str) else data)

    async def send(self, data: bytes | str) -> None:
        self.write(data)
        await self.writer.drain()

    def answer(
        self, body: bytes | str = b"{}", status: int = 200, kind: str = "application/json", more: str = ""
    ) -> None:
        """A whole answer; `more` are lines of headers."""
        data = body.encode() if isinstance(body, str) else body
        self.write(f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n{more}\r\n")
        self.write(data)

    def begin_events(self) -> None:
        self.write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    async def chunk(self, data: bytes | str) -> None:
        data = data.encode() if isinstance(data, str) else data
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def reset(self) -> None:
        """Break the connection off, as a process does that dies."""
        self.writer.transport.abort()


Behaviour = Callable[[Asked], Awaitable[None]]


@dataclass
class Faulty:
    """A server; what it does with a request is `behave`."""

    behave: Behaviour
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """A client has closed its connection."""
    num_connections: int = 0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def posts(self) -> list[Asked]:
        return [each for each in self.asked if each.line.startswith("POST")]

    def hang_up(self) -> None:
        """Close all connections, as a server does with idle ones."""
        for writer in self.writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.num_connections = self.num_connections, self.num_connections + 1
        self.writers.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *lines = head.rstrip().split("\r\n")
                headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                asked = Asked(line, headers, body, writer, number)
                self.asked.append(asked)
                behaving = asyncio.ensure_future(self.behave(asked))
                leaving = asyncio.ensure_future(self._watch(reader, writer))
                await asyncio.wait((behaving, leaving), return_when=asyncio.FIRST_COMPLETED)
                for task in (behaving, leaving):
                    task.cancel()
                await asyncio.gather(behaving, leaving, return_exceptions=True)
        self.left.set()
        self.writers.discard(writer)
        writer.close()

    async def _watch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof() and not writer.is_closing():  # noqa: ASYNC110  # reading would take the next request
            await asyncio.sleep(0.005)


@pytest.fixture
async def faulty() -> AsyncIterator[Callable[[Behaviour], Awaitable[Faulty]]]:
    """Start a server that behaves so."""
    async with AsyncExitStack() as stack:

        async def start(behave: Behaviour) -> Faulty:
            server = Faulty(behave)
            listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
            server.port = listening.sockets[0].getsockname()[1]

            async def stop() -> None:
                listening.close()
                server.hang_up()
                await asyncio.sleep(0)

            stack.push_async_callback(stop)
            return server

        yield start


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class Gateway:
    """An Arriero without a model of its own."""

    client: httpx.AsyncClient
    upstreams: list[Upstream]
    meters: list[Meter]
    """Of all requests so far."""

    async def chat(self, **body: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json=CHAT | body)

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.client.post(path, json={"model": "m"} | body)


@pytest.fixture
async def gateway() -> AsyncIterator[Callable[..., Awaitable[Gateway]]]:
    """Start one with tables `[[models]]`; `settings` are the others."""
    async with AsyncExitStack() as stack:

        async def start(*tables: dict[str, Any], **settings: Any) -> Gateway:
            upstreams = [Upstream(UpstreamTable(**({"name": "m"} | table)), {}) for table in tables]
            app = create_app(Settings(**settings), None, upstreams=upstreams)
            meters: list[Meter] = []

            async def watched(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
                meters.append(meter_of(scope))
                await app(scope, receive, send)

            server = _Server(uvicorn.Config(watched, lifespan="off", log_level="critical", server_header=False))
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            serving = asyncio.create_task(server.serve([listening]))
            client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=100)

            async def stop() -> None:
                await client.aclose()
                server.should_exit = True
                await serving
                for each in upstreams:
                    await each.close()

            stack.push_async_callback(stop)
            while not server.started:  # noqa: ASYNC110  # nobody announces it
                await asyncio.sleep(0.005)
            return Gateway(client, upstreams, meters)

        yield start


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what others bring about; fails after five seconds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0.005)
