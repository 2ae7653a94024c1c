"""A server that answers at once and misbehaves on request, on raw streams."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest


def event(value: object) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"data: {text}\n\n".encode()


def delta(content: str | None = None, finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish_reason}]})


USAGE = event({"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 3}})
STREAM = [delta(""), delta("one"), delta(" two"), delta(" three"), delta(None, "stop"), USAGE, event("[DONE]")]
BODY = {"choices": [{"finish_reason": "length"}], "usage": {"prompt_tokens": 12, "completion_tokens": 3}}


@dataclass
class Server:
    """Answers every POST with `pieces` as an event stream, or with `status` and `body`."""

    pieces: list[bytes] = field(default_factory=lambda: list(STREAM))
    status: str = "200 OK"
    body: object = None
    pause: float = 0.0
    cut: bool = False
    """Close the connection instead of ending the answer."""
    connections: int = 0
    requests: list[dict] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    url: str = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                if head.startswith("GET /v1/models "):
                    self._json(writer, "200 OK", {"data": [{"id": "small"}]})
                    continue
                length = next(line for line in head.splitlines() if line.startswith("content-length: "))
                self.requests.append(json.loads(await reader.readexactly(int(length.split()[1]))))
                if self.body is not None or self.status != "200 OK":
                    self._json(writer, self.status, self.body)
                elif not await self._stream(writer):
                    return
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async def _stream(self, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in self.pieces:
            await asyncio.sleep(self.pause)
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if not self.cut:
            writer.write(b"0\r\n\r\n")
        return not self.cut

    @staticmethod
    def _json(writer: asyncio.StreamWriter, status: str, value: object) -> None:
        body = json.dumps(value).encode()
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)


@asynccontextmanager
async def listening(server: Server) -> AsyncIterator[Server]:
    listener = await asyncio.start_server(server.answer, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with listening(Server()) as running:
        yield running
