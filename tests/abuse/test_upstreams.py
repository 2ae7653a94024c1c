"""Other servers that fail under load: what their clients are told, and that nobody else notices."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable

import httpx

from abuse.conftest import FAULTS, LONG, House, chat

SECONDS = 30.0 if LONG else 2.5
BROKEN_OFF = "broken off"
"""A body that had begun: the connection is closed before its end, so that it cannot be taken for whole."""
REFUSED = "503 overloaded"
"""Its circuit is open."""
ALLOWED = {
    "hangs": {"504 upstream_timeout"},
    "drips": {"504 upstream_timeout", "upstream_timeout", BROKEN_OFF},
    "stops": {"504 upstream_timeout", "upstream_timeout", BROKEN_OFF},
    "resets": {"502 upstream_error"},
    "garbage": {"502 upstream_error"},
    "429": {"429"},
    "500": {"500"},
    "scripted": {"200"},
}
"""By model what clients may see: a status with our code, a status that is passed on, or the code that ends a stream."""
LONGEST = 1.5
"""Seconds that an answer of the other servers may take in all."""


async def outcome(client: httpx.AsyncClient, model: str, *, stream: bool, text: str) -> str:
    try:
        answer = await client.post("/v1/chat/completions", json=chat(model, text, stream=stream))
    except httpx.RemoteProtocolError:
        return BROKEN_OFF
    if answer.status_code in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
    if answer.status_code != 200:
        code = answer.json()["error"].get("code")
        return f"{answer.status_code} {code}" if code else str(answer.status_code)
    if not stream:
        assert answer.json()["choices"][0]["message"]["content"] == text
        return "200"
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    if lines[-1] != "[DONE]":
        return str(json.loads(lines[-1])["error"]["code"])
    chunks = [json.loads(line) for line in lines[:-1]]
    assert "".join(each["choices"][0]["delta"].get("content") or "" for each in chunks) == text
    return "200"


async def test_clients_of_failing_servers_are_told_and_others_do_not_notice(
    house: House, figures: Callable[[str], None]
) -> None:
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    longest: dict[str, float] = defaultdict(float)
    end = time.monotonic() + SECONDS

    async def keep_asking(model: str, number: int) -> None:
        async with house.client("alice") as client:
            while time.monotonic() < end:
                began = time.monotonic()
                seen[model][await outcome(client, model, stream=number % 2 == 1, text=f"words of {number}")] += 1
                longest[model] = max(longest[model], time.monotonic() - began)
                await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as clients:
        for model in (*FAULTS, "scripted"):
            for number in range(4):
                clients.create_task(keep_asking(model, number))
    for model, counts in sorted(seen.items()):
        told = ", ".join(f"{what}: {number}" for what, number in sorted(counts.items()))
        figures(f"upstream '{model}': {told}; the longest took {longest[model]:.2f} s")
        assert counts.keys() <= ALLOWED[model] | ({REFUSED} if model in FAULTS else set()), model
        assert counts.keys() & ALLOWED[model]
        if LONG and model in FAULTS:
            assert longest[model] < 2 * LONGEST + 2  # the machine may have other things to do
    await house.until("arriero_requests_running", lambda running: running == 1)  # the one that asks
    async with house.client("one") as client:
        assert await outcome(client, "scripted", stream=False, text="still well") == "200"
