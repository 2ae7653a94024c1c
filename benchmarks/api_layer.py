"""What the API costs by itself: the scripted engine, which computes nothing, on one worker; LiteLLM's proxy by turns.

    python benchmarks/api_layer.py [--repetitions 3] [--clients 32] [--seconds 4] [--litellm PROGRAM]

Chat completions over kept connections, a closed loop of `--clients` clients on the same machine: each sends its next
request when its last one is answered.

- requests: a message of 20 words, an answer of 16 tokens, greedy, in one piece.
- events: a message of 256 characters, an answer of 256 tokens, greedy, streamed. Counted are the `data:` lines that
  arrive. Where a connection lags behind, an event may carry several tokens; the output tells how many it had.

LiteLLM's proxy (its own virtual environment: pip install 'litellm[proxy]', and --litellm with the path of its program)
passes the same requests on to the same scripted server, which answers it at once. The generator does no more than find
the ends of answers; what it took of a core is told, so that it cannot be what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

from figures import Figures, Verdict, parser
from machine import own_seconds, quietly, serve_arriero

GOALS = {"requests": (1500, 1000), "events": (20_000, 12_000)}
"""A second: what it ought to be, and where the work counts as done."""
TIMES_LITELLM = 20
ANSWER = {"requests": 16, "events": 256}
"""Tokens."""
UNPROTECTED = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
"""It asks for a key otherwise; ours does not check one either."""
PATIENCE = 60.0
"""Seconds that LiteLLM may take to start."""


@dataclass(slots=True)
class Count:
    """What clients have seen so far."""

    requests: int = 0
    events: int = 0
    bytes: int = 0


class Client(asyncio.Protocol):
    """Sends one request after another over one connection."""

    def __init__(self, request: bytes, count: Count, streamed: bool) -> None:
        self._request = request
        self._count = count
        self._streamed = streamed
        self._tail = b""
        self._missing = 0
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._count.bytes += len(data)
        if self._streamed:
            data = self._tail + data
            self._count.events += data.count(b"data: ")
            self._tail = data[-5:]  # what may be the beginning of another
            if data.endswith(b"\n0\r\n\r\n"):
                self._tail = b""
                self._next()
            return
        if not self._missing:
            data = self._tail + data
            head, end, body = data.partition(b"\r\n\r\n")
            if not end:
                self._tail = data
                return
            self._tail = b""
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(data.decode())
            self._missing = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            data = body
        self._missing -= len(data)
        if not self._missing:
            self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)

    def close(self) -> None:
        self._transport.abort()

    def _next(self) -> None:
        self._count.requests += 1
        self._transport.write(self._request)


def request_of(what: str, url: str, stream: bool) -> bytes:
    """The bytes that every client sends, again and again."""
    text = "x" * 256 if stream else " ".join(["word"] * 20)
    messages = [{"role": "user", "content": text}]
    body = json.dumps(
        {"model": "scripted", "messages": messages, "max_tokens": ANSWER[what], "temperature": 0, "stream": stream}
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer none\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def load(what: str, url: str, clients: int, seconds: float) -> dict[str, float]:
    """One measurement, after a quarter of its time to warm up."""
    count = Count()
    stream = what == "events"
    request = request_of(what, url, stream)
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    connected = [
        await loop.create_connection(lambda: Client(request, count, stream), address.hostname, address.port)
        for _ in range(clients)
    ]
    await asyncio.sleep(seconds / 4)
    before, everybody, own = Count(count.requests, count.events), own_seconds(), time.process_time()
    started = time.perf_counter()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - started
    requests, events = count.requests - before.requests, count.events - before.events
    own = time.process_time() - own
    servers = own_seconds() - everybody - own
    for _, client in connected:
        client.close()
    await asyncio.gather(*(client.lost for _, client in connected))
    counted = events if stream else requests
    if not counted:
        raise RuntimeError(f"{url} answered nothing in {seconds} s")
    return {
        what: counted / took,
        "tokens_per_event": requests * ANSWER[what] / events if stream else 0.0,
        "server_microseconds": 1e6 * servers / counted,
        "generator_cores": own / took,
    }


@contextmanager
def serve_litellm(program: str, upstream: str) -> Iterator[str]:
    """LiteLLM's proxy in front of a server, on one worker; gives its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    parameters = {"model": "openai/scripted", "api_base": upstream, "api_key": "none"}
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "config.json"  # which is YAML too
        config.write_text(json.dumps({"model_list": [{"model_name": "scripted", "litellm_params": parameters}]}))
        flags = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        with (Path(directory) / "log").open("w") as log:
            process = subprocess.Popen(
                [program, *flags], stdout=log, stderr=log, cwd=directory, env={**os.environ, **UNPROTECTED}
            )
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + PATIENCE
            while not _lives(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{program} did not start: {(Path(directory) / 'log').read_text()[-2000:]}")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def _lives(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{url}/health/liveliness", timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def options(description: str | None) -> argparse.ArgumentParser:
    """What may be given on the command line."""
    arguments = parser(description, 3)
    arguments.add_argument("--clients", type=int, default=32)
    arguments.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    arguments.add_argument("--litellm", default=shutil.which("litellm"), help="path of LiteLLM's program")
    return arguments


def main() -> None:
    given = options(__doc__).parse_args()
    values: dict[str, dict[str, list[float]]] = {what: {} for what in GOALS}
    details: dict[str, dict[str, list[dict[str, float]]]] = {what: {} for what in GOALS}
    with ExitStack() as running:
        ours = running.enter_context(
            serve_arriero(["serve", "--engine", "scripted", "--port", "0", "--log-level", "warning"])
        )
        urls = {"Arriero": ours}
        if given.litellm:
            urls["LiteLLM"] = running.enter_context(serve_litellm(given.litellm, ours))
        for _ in range(given.repetitions):
            for what in GOALS:
                for name, url in urls.items():
                    found, others = quietly(
                        lambda _, what=what, url=url: uvloop.run(load(what, url, given.clients, given.seconds))
                    )
                    shown = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in found.items())
                    print(f"{name}: {shown}, others took {others:.2f} cores", flush=True)
                    values[what].setdefault(name, []).append(found[what])
                    details[what].setdefault(name, []).append(found | {"cores_of_others": others})
    for what in GOALS:
        figures_of(what, values[what], details[what], given.clients).conclude(given.output)


def figures_of(
    what: str, values: dict[str, list[float]], details: dict[str, list[dict[str, float]]], clients: int
) -> Figures:
    goal, floor = GOALS[what]
    ours = statistics.median(values["Arriero"])
    verdicts = [Verdict(f"Arriero, {what} a second", ours, goal, floor=floor)]
    if "LiteLLM" in values:
        verdicts.append(
            Verdict("Arriero / LiteLLM's proxy", ours / statistics.median(values["LiteLLM"]), TIMES_LITELLM)
        )
    return Figures(
        name=f"api_layer_{what}",
        title=f"The API layer alone: {what} a second, {clients} clients",
        unit=f"{what}/s",
        values={f"chat completions, {'streamed' if what == 'events' else 'in one piece'}": values},
        verdicts=verdicts,
        details=details,
    )


if __name__ == "__main__":
    main()
