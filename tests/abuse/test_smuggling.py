"""A request that is hidden in another one, or behind one that two servers would read differently, is never answered."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable

from abuse.conftest import LONG, House
from cli.test_protocol import SMUGGLING

SECONDS = 60.0 if LONG else 1.5
PIECES = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"\x0b",
    b"\x80",
    b"0",
    b"-1",
    b"%00",
    b"\r\n\r\n",
]
PIECES += [
    b"content-length: 3\r\n",
    b"transfer-encoding: chunked\r\n",
    b"host: y\r\n",
    b"connection: upgrade\r\n",
    b"HTTP/1.0",
]


def keyed(request: bytes, key: str) -> bytes:
    return request.replace(b"host: x\r\n", f"host: x\r\nx-api-key: {key}\r\n".encode(), 1)


def hidden(name: str, key: str) -> bytes:
    return keyed(f"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-request-id: {name}\r\n\r\n".encode(), key)


async def talk(house: House, request: bytes, patience: float) -> bytes:
    """What the server says until it closes the connection, or is silent for so long."""
    reader, writer = await asyncio.open_connection(house.run.server.host, house.run.server.port)
    said = b""
    try:
        writer.write(request)
        while piece := await asyncio.wait_for(reader.read(65_536), patience):
            said += piece
    except (TimeoutError, ConnectionResetError):
        pass
    finally:
        writer.transport.abort()
    return said


async def test_a_request_behind_one_that_is_ambiguous_is_never_answered(
    house: House, figures: Callable[[str], None]
) -> None:
    begun = house.log.stat().st_size
    key = house.run.keys["warden"]
    answers = await asyncio.gather(
        *(
            talk(house, keyed(attack, key) + hidden(f"hidden-{number}", key), 20)
            for number, attack in enumerate(SMUGGLING.values())
        )
    )
    assert all(answer.count(b"HTTP/1.1 ") <= 1 for answer in answers)
    assert b"hidden-" not in house.log.read_bytes()[begun:]
    figures(f"smuggling: {len(answers)} kinds of ambiguous requests, none of the requests behind them answered")


async def test_mutated_bytes_never_make_the_server_fail(house: House, figures: Callable[[str], None]) -> None:
    """Two requests on a connection with bytes put in, taken out and doubled: no 5xx, no more answers than requests."""
    key, draw = house.run.keys["alice"], random.Random(7)
    body = json.dumps({"model": "scripted", "prompt": "hello", "max_tokens": 1}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    whole = keyed(head + b"content-length: %d\r\n\r\n" % len(body) + body, key)
    chunked = keyed(head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), key)
    seen: Counter[str] = Counter()
    end, conversations = time.monotonic() + SECONDS, 0

    async def keep_talking() -> None:
        nonlocal conversations
        while time.monotonic() < end:
            mutated = mutate(draw.choice([whole, chunked]), draw)
            said = await talk(house, mutated + whole, 0.25)
            statuses = re.findall(rb"HTTP/1\.1 (\d{3}) ", said)
            # What was put in may end a request and begin another; none has more than its pieces make.
            assert len(statuses) <= mutated.count(b"HTTP/1") + 1
            seen.update(status.decode() for status in statuses)
            conversations += 1

    await asyncio.gather(*(keep_talking() for _ in range(8)))
    figures(
        f"mutated bytes: {conversations} conversations in {SECONDS:g} s, answers "
        + ", ".join(f"{status}: {number}" for status, number in sorted(seen.items()))
    )
    assert not any(status.startswith("5") for status in seen)
    assert seen["200"]
    assert seen["400"]
    assert (await talk(house, hidden("still-well", key), 0.25)).startswith(b"HTTP/1.1 200 ")


def mutate(request: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(request))
        match draw.randrange(4):
            case 0:
                request = request[:place] + draw.choice(PIECES) + request[place:]
            case 1:
                request = request[:place] + request[place + draw.randint(1, 4) :]
            case 2:
                lines = request.split(b"\r\n")
                lines.insert(draw.randrange(len(lines)), draw.choice(lines))
                request = b"\r\n".join(lines)
            case _:
                request = request[:place] + bytes([draw.randrange(256)]) + request[place + 1 :]
    return request
