"""What strangers say is neither opened nor fetched, breaks no header and no line of the log, and tells them nothing."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from abuse.conftest import LONG, House, chat
from endpoints import POSTED

_OPENED_OR_READ = 0x20 | 0x1
"""IN_OPEN and IN_ACCESS of inotify(7)."""
ODD = ("user", "image", "image_url", "file", "url", "script", "adapter", "lora", "tokenizer", "cache")
"""Parameters that have to do with addresses and files elsewhere."""


@contextmanager
def traps(directory: Path) -> Iterator[tuple[str, Path, Callable[[], tuple[int, int]]]]:
    """A URL and a file, and a function that tells how often each was asked for."""
    secret = directory / "secret.txt"
    secret.write_text("secret")
    libc = ctypes.CDLL(None)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(watch, os.fsencode(secret), _OPENED_OR_READ)

    def num_events() -> int:
        try:
            return len(os.read(watch, 65_536)) // 16
        except BlockingIOError:
            return 0

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)

        def num_connections() -> int:
            found = 0
            while True:
                try:
                    listening.accept()[0].close()
                except BlockingIOError:
                    return found
                found += 1

        try:
            address = f"127.0.0.1:{listening.getsockname()[1]}"
            yield address, secret, lambda: (num_connections(), num_events())
        finally:
            os.close(watch)


def test_the_traps_work(tmp_path: Path) -> None:
    with traps(tmp_path) as (address, secret, sprung):
        assert sprung() == (0, 0)
        secret.read_text()
        host, port = address.split(":")
        socket.create_connection((host, int(port))).close()
        connections, events = sprung()
        assert connections == 1
        assert events >= 1


def baits(address: str, secret: Path) -> list[str]:
    """Addresses and paths that lead to the traps, the latter from wherever the server looks from."""
    up = "../" * 12
    places = [f"http://{address}/x", f"//{address}/x", f"ftp://{address}/x", f"file://{secret}", str(secret)]
    return [*places, f"{up}{str(secret)[1:]}", f"..%2f..%2f{secret}", f"{secret}\0.gguf", f"hf://{address}/x"]


def bodies(bait: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Bodies with a bait wherever a server might take it for an address or a file."""
    for path, least in POSTED.items():
        yield path, {**least, "model": bait}
        yield path, {**least, "model": "scripted", "max_tokens": 1, **dict.fromkeys(ODD, bait)}
    parts = [
        {"type": "image_url", "image_url": {"url": bait}},
        {"type": "input_audio", "input_audio": {"data": bait, "format": "wav"}},
        {"type": "file", "file": {"file_id": bait, "file_data": bait}},
        {"type": "video_url", "video_url": {"url": bait}},
    ]
    for part in parts:
        yield "/v1/chat/completions", {"model": "scripted", "messages": [{"role": "user", "content": [part]}]}
    for schema in ({"$ref": bait}, {"$schema": bait, "type": "object"}):
        format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        yield "/v1/chat/completions", chat(response_format=format, max_tokens=1)
    yield (
        "/v1/chat/completions",
        chat(max_tokens=1, tools=[{"type": "function", "function": {"name": "x", "parameters": {"$ref": bait}}}]),
    )
    yield "/v1/chat/completions", chat(chat_template=bait)
    yield "/v1/embeddings", {"model": "scripted", "input": [bait, {"image": bait}]}


async def test_nothing_that_clients_name_is_opened_or_fetched(
    house: House, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    seen: Counter[int] = Counter()
    with traps(tmp_path) as (address, secret, sprung):
        async with house.client("alice") as alice, house.client("warden") as warden:
            described = (await warden.get("/openapi.json")).json()["paths"]
            posted = {path for path, methods in described.items() if "post" in methods and "admin" not in path}
            assert posted == POSTED.keys(), "a new endpoint must be tried here"
            for bait in baits(address, secret):
                for path, body in bodies(bait):
                    seen[(await alice.post(path, json=body)).status_code] += 1
                headers = {
                    name: bait.replace("\0", "") for name in ("referer", "origin", "x-forwarded-host", "location")
                }
                seen[
                    (await alice.post("/v1/chat/completions", json=chat(max_tokens=1), headers=headers)).status_code
                ] += 1
                name = bait.replace("\0", "%00")
                for method, path in (("GET", "/v1/models/"), ("POST", "/admin/models/")):
                    raw = f"{path}{name}{'/load' if method == 'POST' else ''}"
                    seen[await status_of(house, f"{method} {raw} HTTP/1.1", "warden")] += 1
            for line in (f"GET http://{address}/x HTTP/1.1", f"CONNECT {address} HTTP/1.1", "GET @x HTTP/1.1"):
                seen[await status_of(house, line, "warden", address)] += 1
        await asyncio.sleep(0.2)
        assert sprung() == (0, 0)
    figures(
        f"addresses and paths in {seen.total()} requests: none fetched, none opened; answers "
        + ", ".join(f"{status}: {number}" for status, number in sorted(seen.items()))
    )
    assert max(seen) < 500


async def status_of(house: House, line: str, key: str, host: str = "x") -> int:
    """What a request with exactly this line is answered."""
    head, _ = await exchange(house, f"{line}\r\nhost: {host}\r\nx-api-key: {house.run.keys[key]}\r\n\r\n".encode())
    return int(head.split(b" ", 2)[1])


async def exchange(house: House, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of the first answer."""
    reader, writer = await asyncio.open_connection(house.run.server.host, house.run.server.port)
    try:
        writer.write(request)
        async with asyncio.timeout(20):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            return head, await reader.readexactly(int(length.split(b":")[1]))
    finally:
        writer.transport.abort()


EVIL = [
    "\r\nx-evil: 1",
    "\nx-evil: 1",
    "\r\n\r\n<html>",
    "%0d%0ax-evil:1",
    "\x1b[2J",
    "\x00",
    '"}\n{"level":"info',
    "\u2028",
    "é\x85",
]
"""What ends a line, a header or a quotation somewhere."""


async def test_nothing_that_clients_say_ends_a_header_or_a_line_of_the_log(
    house: House, figures: Callable[[str], None]
) -> None:
    begun = house.log.stat().st_size
    key, sent = house.run.keys["alice"], 0
    for evil in EVIL:
        raw = evil.encode("utf-8", "replace").replace(b"\r", b"%0d").replace(b"\n", b"%0a").replace(b"\0", b"%00")
        visible = raw.replace(b" ", b"_").replace(b"\x1b", b"%1b")
        body = json.dumps(
            chat(f"scripted{evil}" if sent % 2 else "scripted", f"words {evil}", **{f"odd{evil}": 1, "user": evil})
        ).encode()
        lines = [
            b"x-request-id: a%b" % raw,
            b"user-agent: a%b" % raw,
            b"authorization: Bearer %b" % key.encode(),
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"host: x",
        ]
        for line, content in (
            (b"POST /v1/chat/completions?x=%b HTTP/1.1" % visible, body),
            (b"GET /v1/models/%b HTTP/1.1" % visible, b""),
            (b"GET /%b HTTP/1.1" % visible, b""),
        ):
            fields = lines if content else [*lines[:4], lines[5]]
            head, _ = await exchange(house, b"\r\n".join((line, *fields, b"", b"")) + content)
            sent += 1
            assert b"x-evil" not in head.lower().replace(b"%0d%0ax-evil", b"").replace(b"%0ax-evil", b"")
            assert all(32 <= byte < 127 for byte in head.replace(b"\r\n", b"")), head
            assert head.split(b" ", 2)[1] in (b"200", b"400", b"404"), head
    async with asyncio.timeout(10):
        while len(written := logged(house.log, begun)) < sent:  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0.02)
    figures(
        f"lines and headers: {sent} requests that try to end them, {len(written)} whole lines of the log, no header"
    )
    assert len(written) == sent
    requests = [line for line in written if line["message"] == "request"]
    refused = [line["message"] for line in written if line["message"] != "request"]
    assert set(refused) <= {"Invalid HTTP request received."}
    assert len({line["id"] for line in requests}) == len(requests) > len(refused)


def logged(log: Path, begin: int) -> list[dict[str, Any]]:
    """The lines since then, each of which has to be an object of its own."""
    return [json.loads(line) for line in log.read_bytes()[begin:].decode().split("\n") if line]


async def test_how_long_a_refusal_takes_does_not_tell_a_key(house: House, figures: Callable[[str], None]) -> None:
    """Wrong keys of three kinds, in turns that are drawn; the times' bound is for the long form, with many of them."""
    right = house.run.keys["alice"]
    wrong = {
        "an unknown id": right[:11] + "0" * 12 + right[23:],
        "a known id, all of the secret wrong": right[:24] + "".join("a" if each != "a" else "b" for each in right[24:]),
        "a known id, the last character wrong": right[:-1] + ("a" if right[-1] != "a" else "b"),
    }
    times: dict[str, list[float]] = {name: [] for name in wrong}
    draw = random.Random(1)
    order = [name for name in wrong for _ in range(20_000 if LONG else 100)]
    draw.shuffle(order)
    await asyncio.to_thread(refuse, house, order, wrong, times)
    middles = {name: statistics.median(each) * 1e6 for name, each in times.items()}
    spreads = [statistics.quantiles(each, n=4) for each in times.values()]
    # The standard error of a median, by the distance between quartiles of a bell curve.
    error = max((high - low) / 1.35 * 1.253 / len(order) ** 0.5 * 3**0.5 * 1e6 for low, _, high in spreads)
    figures(
        f"refusals, {len(order) // 3} of each: "
        + "; ".join(f"{name}: median {middle:.1f} us" for name, middle in middles.items())
        + f"; a median's standard error {error:.2f} us"
    )
    if LONG:
        assert max(middles.values()) - min(middles.values()) < 5 * error + 1


def refuse(house: House, order: list[str], wrong: dict[str, str], times: dict[str, list[float]]) -> None:
    with socket.create_connection((house.run.server.host, house.run.server.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for name in order:
            request = f"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-api-key: {wrong[name]}\r\n\r\n".encode()
            began = time.perf_counter()
            connection.sendall(request)
            answer = connection.recv(65_536)
            times[name].append(time.perf_counter() - began)
            while b"provided" not in answer:
                answer += connection.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 401 ")
