"""Many clients at once, most of them badly behaved; what is left of it in the server afterwards has to be nothing.

    python benchmarks/soak.py                                   # 500 clients for 60 s on a scripted server of its own
    python benchmarks/soak.py --url http://127.0.0.1:8000 --pid PID --clients 64 --seconds 300

Ends with status 1 if a client saw what it should not, or if anything stayed behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

WORDS = ["the", "mule", "went", "over", "the", "mountain", "with", "salt", "and", "came", "home", "with", "corn"]
FINE, TURNED_AWAY, GONE = "200", "503", "left"
PATIENCE = 120.0
"""Seconds after which a client that behaves gives up; a server that lets it wait so long has failed."""


@dataclass
class Server:
    """Whom the clients ask."""

    host: str
    port: int
    model: str = ""
    echoes: bool = False
    """Whether an answer is known beforehand: what was asked."""
    body_limit: int = 16 * 2**20


@dataclass
class Answer:
    """What came back."""

    status: int = 0
    body: bytes = b""


@dataclass
class Soak:
    """Clients at work, and what became of their requests."""

    server: Server
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)

    async def run(self, clients: int, seconds: float, seed: int) -> None:
        """So many clients for so long, each with its next request when the last is over."""
        end = time.monotonic() + seconds

        async def client(number: int) -> None:
            draw = random.Random(seed * 100_000 + number)
            await asyncio.sleep(draw.uniform(0, min(1.0, seconds / 4)))
            while time.monotonic() < end:
                [(name, (behaviour, allowed, _))] = draw.choices(list(BEHAVIOURS.items()), WEIGHTS)
                try:
                    async with asyncio.timeout(PATIENCE):
                        outcome = await behaviour(self.server, draw)
                except TimeoutError:
                    outcome = "timeout"
                except (OSError, asyncio.IncompleteReadError) as error:
                    outcome = type(error).__name__
                self.outcomes[name, outcome] += 1
                if outcome not in allowed:
                    self.wrong[f"{name}: {outcome}"] += 1

        await asyncio.gather(*(client(number) for number in range(clients)))


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that is broken off in the end, whatever is under way."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def request(server: Server, path: str, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = (f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {size}", "", "")
    return "\r\n".join(lines).encode() + body


def question(server: Server, draw: random.Random, **others: Any) -> tuple[bytes, str]:
    """A chat's request, and what a server that echoes answers."""
    text = " ".join(draw.choices(WORDS, k=draw.randint(1, 30)))
    body = {"model": server.model, "messages": [{"role": "user", "content": text}], "max_tokens": 32, **others}
    if server.echoes:
        body["max_tokens"] = 400
    return request(server, "/v1/chat/completions", json.dumps(body).encode()), text


async def read(reader: asyncio.StreamReader, pause: Callable[[], Awaitable[None]] | None = None) -> Answer:
    """A whole answer; `pause` comes before each piece of a stream."""
    head = await reader.readuntil(b"\r\n\r\n")
    answer = Answer(int(head.split(b" ", 2)[1]))
    if length := re.search(rb"content-length: (\d+)", head.lower()):
        answer.body = await reader.readexactly(int(length[1]))
        return answer
    while size := int(await reader.readuntil(b"\r\n"), 16):
        if pause:
            await pause()
        answer.body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return answer


def judged(server: Server, answer: Answer, expected: str) -> str:
    """The status, or what is wrong with an answer that should be fine."""
    if answer.status != 200:
        return str(answer.status)
    if answer.body.startswith((b"data:", b":")):
        events = [json.loads(line[6:]) for line in answer.body.split(b"\n") if line.startswith(b"data: {")]
        if any("error" in event for event in events):
            return "error event"
        if not answer.body.endswith(b"data: [DONE]\n\n"):
            return "stream without an end"
        said = "".join(each["delta"].get("content") or "" for event in events for each in event["choices"])
    else:
        said = json.loads(answer.body)["choices"][0]["message"]["content"]
    return FINE if not server.echoes or said == expected else "another's answer"


# What clients do


async def ask(server: Server, draw: random.Random) -> str:
    """Two requests on one connection, like any client."""
    async with connected(server) as (reader, writer):
        for _ in range(2):
            sent, expected = question(server, draw)
            writer.write(sent)
            outcome = judged(server, await read(reader), expected)
            if outcome != FINE:
                return outcome
    return FINE


async def stream(server: Server, draw: random.Random) -> str:
    """A stream, read to its end."""
    async with connected(server) as (reader, writer):
        sent, expected = question(server, draw, stream=True)
        writer.write(sent)
        return judged(server, await read(reader), expected)


async def read_slowly(server: Server, draw: random.Random) -> str:
    """A stream of which each piece waits to be read."""
    async with connected(server) as (reader, writer):
        sent, expected = question(server, draw, stream=True)
        writer.write(sent)
        return judged(server, await read(reader, lambda: asyncio.sleep(draw.uniform(0, 0.04))), expected)


async def leave_stream(server: Server, draw: random.Random) -> str:
    """Gone amid a stream."""
    async with connected(server) as (reader, writer):
        writer.write(question(server, draw, stream=True, n=draw.randint(1, 3))[0])
        await reader.read(draw.randint(1, 4000))
    return GONE


async def leave_answer(server: Server, draw: random.Random) -> str:
    """Gone before the answer."""
    async with connected(server) as (_, writer):
        writer.write(question(server, draw)[0])
        await asyncio.sleep(draw.uniform(0, 0.3))
    return GONE


async def leave_request(server: Server, draw: random.Random) -> str:
    """Gone amid the request, in its head or its body."""
    async with connected(server) as (_, writer):
        sent, _ = question(server, draw)
        writer.write(sent[: draw.randrange(len(sent))])
        await asyncio.sleep(draw.uniform(0, 0.1))
    return GONE


async def half_close(server: Server, draw: random.Random) -> str:
    """Done with sending before the answer comes, as some tools are."""
    async with connected(server) as (reader, writer):
        writer.write(question(server, draw)[0])
        writer.write_eof()
        await reader.read()
    return GONE


async def send_too_much(server: Server, draw: random.Random) -> str:
    """A body over the limit, declared or in chunks."""
    async with connected(server) as (reader, writer):
        if draw.random() < 0.8:
            writer.write(request(server, "/v1/chat/completions", b"{" * 65_536, server.body_limit + 1))
        else:
            head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            writer.write(head + b"transfer-encoding: chunked\r\n\r\n")
            chunk = b"%x\r\n%s\r\n" % (2**20, b"{" * 2**20)
            for _ in range(server.body_limit // 2**20 + 1):
                writer.write(chunk)
                await writer.drain()
        return str((await read(reader)).status)


async def send_nonsense(server: Server, draw: random.Random) -> str:
    """A body that is none."""
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
            json.dumps({"model": server.model, "messages": [{"role": "user"}] * 3, "prompt": 3}).encode(),
            json.dumps({"model": server.model, "messages": hello, "prompt": "a", "n": -1}).encode(),
            json.dumps({"model": server.model, "messages": hello, "prompt": "a", "max_tokens": 10**9}).encode(),
        ]
    )
    async with connected(server) as (reader, writer):
        writer.write(request(server, draw.choice(["/v1/chat/completions", "/v1/completions"]), body))
        return str((await read(reader)).status)


async def break_http(server: Server, draw: random.Random) -> str:
    """Bytes that are no HTTP."""
    async with connected(server) as (reader, writer):
        writer.write(
            draw.choice([b"\x16\x03\x01\x00\xff", b"GET\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n"])
        )
        return str((await read(reader)).status)


async def get_lost(server: Server, draw: random.Random) -> str:
    """A path or a model that is not there."""
    async with connected(server) as (reader, writer):
        if draw.random() < 0.5:
            writer.write(f"GET /no/{draw.randrange(10**6)} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        else:
            body = {"model": f"no-{draw.randrange(10**6)}", "messages": [{"role": "user", "content": "a"}]}
            writer.write(request(server, "/v1/chat/completions", json.dumps(body).encode()))
        return str((await read(reader)).status)


Behaviour = Callable[[Server, random.Random], Awaitable[str]]
BEHAVIOURS: dict[str, tuple[Behaviour, set[str], int]] = {
    "ask": (ask, {FINE, TURNED_AWAY}, 20),
    "stream": (stream, {FINE, TURNED_AWAY}, 20),
    "read slowly": (read_slowly, {FINE, TURNED_AWAY}, 5),
    "leave a stream": (leave_stream, {GONE}, 15),
    "leave an answer": (leave_answer, {GONE}, 10),
    "leave a request": (leave_request, {GONE}, 5),
    "half-close": (half_close, {GONE}, 5),
    "send too much": (send_too_much, {"413"}, 1),
    "send nonsense": (send_nonsense, {"400", "413"}, 8),
    "break HTTP": (break_http, {"400"}, 5),
    "get lost": (get_lost, {"404"}, 6),
}
"""What a client may do, what it may see then, and how often it does."""
WEIGHTS = [weight for _, _, weight in BEHAVIOURS.values()]


# What is left of it


async def get(server: Server, path: str) -> bytes:
    async with connected(server) as (reader, writer):
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        return (await read(reader)).body


@dataclass(frozen=True)
class Rest:
    """What a server holds when it has nothing to do."""

    megabytes: float
    open_files: int
    threads: int
    tasks: int
    slots: int
    waiting: int
    reserved_tokens: int


async def rest(server: Server, pid: int) -> Rest:
    """What the server holds, once it is idle; waits a minute at most."""
    for _ in range(240):
        await asyncio.sleep(0.25)
        seen = await measured(server, pid)
        if not (seen.slots or seen.waiting or seen.reserved_tokens or seen.tasks > 12):
            break
    looks = [seen]
    for _ in range(4):  # SQLite opens files for moments
        await asyncio.sleep(0.5)
        looks.append(await measured(server, pid))
    return replace(looks[-1], **{name: min(getattr(each, name) for each in looks) for name in ("open_files", "tasks")})


async def measured(server: Server, pid: int) -> Rest:
    metrics = (await get(server, "/metrics")).decode()

    def total(name: str) -> int:
        return int(sum(map(float, re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", metrics, re.M))))

    family = [pid, *children(pid)]
    return Rest(
        megabytes=round(sum(resident(each) for each in family) / 2**20, 1),
        open_files=sum(len(os.listdir(f"/proc/{each}/fd")) for each in family),
        threads=sum(len(os.listdir(f"/proc/{each}/task")) for each in family),
        tasks=total("arriero_event_loop_tasks"),
        slots=total("arriero_slots_used"),
        waiting=total("arriero_requests_waiting"),
        reserved_tokens=total("arriero_reserved_tokens"),
    )


def children(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Report:
    """How it went."""

    clients: int
    seconds: float
    outcomes: dict[str, dict[str, int]]
    wrong: dict[str, int]
    before: Rest
    after: Rest

    @property
    def faults(self) -> list[str]:
        """What should not be; memory may grow by what its allocator keeps."""
        faults = [f"{what} ({number} times)" for what, number in self.wrong.items()]
        for name in ("open_files", "threads", "tasks", "slots", "waiting", "reserved_tokens"):
            was, now = getattr(self.before, name), getattr(self.after, name)
            if now > was:
                faults.append(f"{name}: {was} before, {now} after")
        if self.after.megabytes > self.before.megabytes * 1.2 + 16:
            faults.append(f"memory: {self.before.megabytes} MB before, {self.after.megabytes} MB after")
        return faults


async def soak(server: Server, pid: int, clients: int, seconds: float) -> Report:
    """Warm the server up, look, let the clients loose, and look again."""
    server.model = json.loads(await get(server, "/v1/models"))["data"][0]["id"]
    await Soak(server).run(clients, min(10.0, seconds / 4), seed=1)
    before = await rest(server, pid)
    run = Soak(server)
    await run.run(clients, seconds, seed=2)
    outcomes: dict[str, dict[str, int]] = {name: {} for name in BEHAVIOURS}
    for (name, outcome), number in sorted(run.outcomes.items()):
        outcomes[name][outcome] = number
    return Report(clients, seconds, outcomes, dict(run.wrong), before, await rest(server, pid))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server; left out: a scripted one of its own")
    parser.add_argument("--pid", type=int, help="the running server's process")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60.0)
    chosen = parser.parse_args()
    if chosen.url:
        if chosen.pid is None:
            parser.error("--url needs --pid")
        report = asyncio.run(soak(server_at(chosen.url, echoes=False), chosen.pid, chosen.clients, chosen.seconds))
    else:
        report = on_scripted(chosen.clients, chosen.seconds)
    show(report)
    sys.exit(1 if report.faults else 0)


def on_scripted(clients: int, seconds: float) -> Report:
    """The same on a server of our own, which is ended afterwards."""
    command = [sys.executable, "-m", "arriero", "serve", "--engine", "scripted", "--port", "0", "--log-level", "error"]
    with (
        tempfile.TemporaryDirectory() as directory,
        subprocess.Popen(
            [*command, "--pace", "200", "--store", f"{directory}/arriero.db"], stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout
        try:
            url = re.search(r"http://[^/]+", process.stdout.readline())
            assert url, "the server did not start"
            return asyncio.run(soak(server_at(url[0], echoes=True), process.pid, clients, seconds))
        finally:
            process.terminate()


def server_at(url: str, *, echoes: bool) -> Server:
    host, _, port = url.removeprefix("http://").rstrip("/").partition(":")
    return Server(host, int(port or 80), echoes=echoes)


def show(report: Report) -> None:
    print(f"{report.clients} clients for {report.seconds:g} s")
    for name, counts in report.outcomes.items():
        print(f"  {name:16} " + ", ".join(f"{outcome}: {number}" for outcome, number in counts.items()))
    for name in report.before.__dataclass_fields__:
        print(f"  {name:16} {getattr(report.before, name)} -> {getattr(report.after, name)}")
    print("\n".join(f"WRONG {fault}" for fault in report.faults) or "Nothing stayed behind.")


if __name__ == "__main__":
    main()
