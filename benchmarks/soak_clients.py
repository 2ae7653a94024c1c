"""What clients do to a server, well and badly, and what each of them was told; `soak.py` sends many at once."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

WORDS = ["the", "mule", "went", "over", "the", "mountain", "with", "salt", "and", "came", "home", "with", "corn"]
QUESTIONS = [f"What did the mule bring from {place}?" for place in ("here", "the hill", "home", "town", "the lake")]
"""What models are asked whose answers are only known once they were asked alone."""
FINE, TURNED_AWAY, LIMITED, GONE = "200", "503", "429", "left"


@dataclass
class Server:
    """Whom the clients ask."""

    host: str
    port: int
    models: dict[str, dict[str, str] | None] = field(default_factory=dict)
    """By name: what each answers to `QUESTIONS`; None: it says what it is asked."""
    body_limit: int = 16 * 2**20


@dataclass
class Told:
    """What clients of one kind know of their usage."""

    requests: int = 0
    """That reached the server whole and have to be in its books."""
    broken_off: int = 0
    """That may be."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """In the answers' `usage`."""
    seen: int = 0
    """Pieces of text in answers that were not read to their end; each had a token at least."""
    seconds: list[float] = field(default_factory=list)
    """That whole answers took."""


@dataclass
class Client:
    """One client for the time of one visit."""

    server: Server
    draw: random.Random
    key: str
    told: Told

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection that is broken off in the end, whatever is under way."""
        reader, writer = await asyncio.open_connection(self.server.host, self.server.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    def head(self, path: str, length: str) -> bytes:
        lines = (f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", f"x-api-key: {self.key}", length)
        return "\r\n".join((*lines, "", "")).encode()

    def post(self, path: str, body: bytes, length: int | None = None) -> bytes:
        return self.head(path, f"content-length: {len(body) if length is None else length}") + body

    def question(self, **others: Any) -> tuple[bytes, str]:
        """A chat's request, and what the server is to answer."""
        name, answers = self.draw.choice(list(self.server.models.items()))
        if answers is None:
            text = expected = " ".join(self.draw.choices(WORDS, k=self.draw.randint(1, 30)))
            limit = 400
        else:
            text, limit = self.draw.choice(QUESTIONS), 32
            expected = answers.get(text, "")
        body = {
            "model": name,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": limit,
            "temperature": 0,
            **others,
        }
        if body.get("stream"):
            body["stream_options"] = {"include_usage": True}
        return self.post("/v1/chat/completions", json.dumps(body).encode()), expected

    def judge(self, answer: Answer, expected: str) -> str:
        """The status, or what is wrong with an answer that should be fine; its usage is noted."""
        self.told.requests += 1
        if answer.status in (429, 503) and b"\r\nretry-after:" not in answer.head:
            return f"{answer.status} without Retry-After"
        if answer.status != 200:
            return str(answer.status)
        if answer.body.startswith((b"data:", b":")):
            events = events_of(answer.body)
            if any("error" in event for event in events):
                return "error event"
            if not answer.body.endswith(b"data: [DONE]\n\n"):
                return "stream without an end"
            usage = events[-1]["usage"]
            said = "".join(each["delta"].get("content") or "" for event in events for each in event["choices"])
        else:
            whole = json.loads(answer.body)
            usage, said = whole["usage"], whole["choices"][0]["message"]["content"]
        self.told.prompt_tokens += usage["prompt_tokens"]
        self.told.completion_tokens += usage["completion_tokens"]
        self.told.seconds.append(answer.seconds)
        return FINE if said == expected else "another's answer"


@dataclass
class Answer:
    """What came back."""

    began: float = field(default_factory=time.monotonic)
    status: int = 0
    head: bytes = b""
    body: bytes = b""
    seconds: float = 0.0


def events_of(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {") and line.endswith(b"}")]


async def read(reader: asyncio.StreamReader, pause: Callable[[], Awaitable[None]] | None = None) -> Answer:
    """A whole answer; `pause` comes before each piece of a stream."""
    answer = Answer()
    answer.head = (await reader.readuntil(b"\r\n\r\n")).lower()
    answer.status = int(answer.head.split(b" ", 2)[1])
    if length := re.search(rb"content-length: (\d+)", answer.head):
        answer.body = await reader.readexactly(int(length[1]))
    else:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            if pause:
                await pause()
            answer.body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    answer.seconds = time.monotonic() - answer.began
    return answer


# Well behaved


async def ask(client: Client) -> str:
    """Two requests on one connection, like any client."""
    async with client.connected() as (reader, writer):
        for _ in range(2):
            sent, expected = client.question()
            writer.write(sent)
            outcome = client.judge(await read(reader), expected)
            if outcome != FINE:
                return outcome
    return FINE


async def stream(client: Client) -> str:
    """A stream, read to its end."""
    async with client.connected() as (reader, writer):
        sent, expected = client.question(stream=True)
        writer.write(sent)
        return client.judge(await read(reader), expected)


# Slow, but well behaved


async def read_slowly(client: Client) -> str:
    """A stream of which each piece waits to be read."""
    async with client.connected() as (reader, writer):
        sent, expected = client.question(stream=True)
        writer.write(sent)
        return client.judge(await read(reader, lambda: asyncio.sleep(client.draw.uniform(0, 0.04))), expected)


async def send_slowly(client: Client) -> str:
    """A request that comes in pieces."""
    async with client.connected() as (reader, writer):
        sent, expected = client.question()
        for start in range(0, len(sent), 40):
            writer.write(sent[start : start + 40])
            await asyncio.sleep(client.draw.uniform(0, 0.05))
        return client.judge(await read(reader), expected)


# Gone


async def leave_stream(client: Client) -> str:
    """Gone amid a stream."""
    async with client.connected() as (reader, writer):
        writer.write(client.question(stream=True, n=client.draw.randint(1, 3))[0])
        client.told.broken_off += 1
        wanted, got = client.draw.randint(1, 4000), await reader.readline()
        streams = b" 200 " in got
        while streams and len(got) < wanted and b"[DONE]" not in got and (piece := await reader.read(wanted)):
            got += piece
        client.told.seen += got.count(b'"content":') - got.count(b'"content":""')
    return GONE


async def leave_answer(client: Client) -> str:
    """Gone before the answer, whether it waits or is written."""
    async with client.connected() as (_, writer):
        writer.write(client.question()[0])
        client.told.broken_off += 1
        await asyncio.sleep(client.draw.uniform(0, 0.3))
    return GONE


async def leave_request(client: Client) -> str:
    """Gone amid the request, in its head or its body."""
    async with client.connected() as (_, writer):
        sent, _ = client.question()
        writer.write(sent[: client.draw.randrange(len(sent))])
        client.told.broken_off += 1
        await asyncio.sleep(client.draw.uniform(0, 0.1))
    return GONE


async def half_close(client: Client) -> str:
    """Done with sending before the answer comes, as some tools are."""
    async with client.connected() as (reader, writer):
        writer.write(client.question()[0])
        client.told.broken_off += 1
        writer.write_eof()
        await reader.read()
    return GONE


async def read_nothing(client: Client) -> str:
    """Asks for much, takes none of it, and is gone after a while."""
    async with client.connected() as (reader, writer):
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # the socket's own buffer fills up
        writer.write(client.question(stream=True, n=4)[0])
        client.told.broken_off += 1
        await asyncio.sleep(client.draw.uniform(0, 2))
    return GONE


async def be_in_a_hurry(client: Client) -> str:
    """An answer that the server is to give up after a while."""
    async with client.connected() as (reader, writer):
        sent, expected = client.question(deadline=client.draw.choice([0.05, 0.2, 1.0]))
        writer.write(sent)
        return client.judge(await read(reader), expected)


# Ill behaved


async def send_too_much(client: Client) -> str:
    """A body over the limit, declared or in chunks."""
    limit = client.server.body_limit
    async with client.connected() as (reader, writer):
        client.told.requests += 1
        if client.draw.random() < 0.8:
            writer.write(client.post("/v1/chat/completions", b"{" * 65_536, limit + 1))
        else:
            writer.write(client.head("/v1/completions", "transfer-encoding: chunked"))
            chunk = b"%x\r\n%s\r\n" % (2**20, b"{" * 2**20)
            for _ in range(limit // 2**20 + 1):
                writer.write(chunk)
                await writer.drain()
        return str((await read(reader)).status)


async def send_nonsense(client: Client) -> str:
    """A body that is none."""
    name, draw = next(iter(client.server.models)), client.draw
    hello = [{"role": "user", "content": "a"}]
    body = draw.choice(
        [
            b"",
            b"{",
            b"[]",
            b"null",
            bytes(draw.randrange(256) for _ in range(100)),
            b'{"model": 1, "messages": []}',
            b"[" * 50_000,
            json.dumps({"model": name, "messages": [{"role": "user"}] * 3, "prompt": 3}).encode(),
            json.dumps({"model": name, "messages": hello, "prompt": "a", "n": -1}).encode(),
            json.dumps({"model": name, "messages": hello, "prompt": "a", "max_tokens": 10**9}).encode(),
        ]
    )
    async with client.connected() as (reader, writer):
        client.told.requests += 1
        writer.write(client.post(draw.choice(["/v1/chat/completions", "/v1/completions"]), body))
        return str((await read(reader)).status)


async def break_http(client: Client) -> str:
    """Bytes that are no HTTP."""
    nothing = [b"\x16\x03\x01\x00\xff", b"GET\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n"]
    async with client.connected() as (reader, writer):
        writer.write(client.draw.choice(nothing))
        return str((await read(reader)).status)


async def get_lost(client: Client) -> str:
    """A path or a model that is not there."""
    number = client.draw.randrange(10**6)
    async with client.connected() as (reader, writer):
        if client.draw.random() < 0.5:
            writer.write(f"GET /no/{number} HTTP/1.1\r\nhost: x\r\nx-api-key: {client.key}\r\n\r\n".encode())
        else:
            body = {"model": f"no-{number}", "messages": [{"role": "user", "content": "a"}]}
            client.told.requests += 1
            writer.write(client.post("/v1/chat/completions", json.dumps(body).encode()))
        return str((await read(reader)).status)


async def have_a_wrong_key(client: Client) -> str:
    """A key that is almost right, or somebody's secret under another's name."""
    wrong = [client.key[:-1] + "?", client.key[:24] + client.key[23:], "", "x" * 30_000]
    async with client.connected() as (reader, writer):
        stranger = Client(client.server, client.draw, client.draw.choice(wrong), client.told)
        writer.write(stranger.question()[0])
        return str((await read(reader)).status)


Behaviour = Callable[[Client], Awaitable[str]]
BEHAVIOURS: dict[str, tuple[Behaviour, set[str], int]] = {
    "ask": (ask, {FINE, TURNED_AWAY}, 20),
    "stream": (stream, {FINE, TURNED_AWAY}, 20),
    "read slowly": (read_slowly, {FINE, TURNED_AWAY}, 5),
    "send slowly": (send_slowly, {FINE, TURNED_AWAY}, 3),
    "leave a stream": (leave_stream, {GONE}, 15),
    "leave an answer": (leave_answer, {GONE}, 10),
    "leave a request": (leave_request, {GONE}, 5),
    "half-close": (half_close, {GONE}, 5),
    "read nothing": (read_nothing, {GONE}, 3),
    "be in a hurry": (be_in_a_hurry, {FINE, TURNED_AWAY, "504"}, 4),
    "go past a limit": (ask, {FINE, TURNED_AWAY, LIMITED}, 4),
    "send too much": (send_too_much, {"413"}, 1),
    "send nonsense": (send_nonsense, {"400", "413"}, 8),
    "break HTTP": (break_http, {"400"}, 5),
    "get lost": (get_lost, {"404"}, 6),
    "have a wrong key": (have_a_wrong_key, {"401"}, 4),
}
"""What a client may do, what it may see then, and how often it does. Each kind has a key of its own."""
HEALTHY = ("ask", "stream")
"""Those whom the others must not harm."""
LIMITS: dict[str, dict[str, int]] = {"go past a limit": {"requests_per_minute": 120, "concurrent": 20}}
"""What a kind's key may have."""
EXACT = frozenset(BEHAVIOURS) - {
    *("leave a stream", "leave an answer", "leave a request", "half-close", "read nothing", "be in a hurry"),
}
"""Kinds whose clients are told all of their usage."""
