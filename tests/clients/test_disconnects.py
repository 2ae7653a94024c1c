"""A client that leaves frees its slot, streamed or not."""

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from arriero.core import EngineStats


def request(stream: bool) -> bytes:
    body = json.dumps({"model": "scripted", "stream": stream, "messages": [{"role": "user", "content": "x" * 20_000}]})
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}"
    ).encode()


def at_work(stats: EngineStats) -> bool:
    return stats.generated_tokens > 0


def idle(stats: EngineStats) -> bool:
    return not stats.running


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_frees_its_slot(go_live: Callable[..., Any], stream: bool) -> None:
    live = go_live(pace=100.0)
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(request(stream))
        await live.until(at_work)
    await live.until(idle)
    stats = live.model.engine.stats()
    assert stats.generated_tokens < 20_000
    await asyncio.sleep(0.1)  # ten steps, if anybody still wanted them
    assert live.model.engine.stats().steps <= stats.steps + 2  # one was under way, one may free the slot


async def test_a_client_that_stops_reading_a_stream_and_leaves_frees_its_slot(go_live: Callable[..., Any]) -> None:
    live = go_live()
    host, port = live.url.removeprefix("http://").split(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.sendall(request(True))
        await live.until(at_work)
        await asyncio.sleep(0.2)
    await live.until(idle)


async def test_a_client_that_leaves_while_it_waits_in_the_queue_is_forgotten(go_live: Callable[..., Any]) -> None:
    live = go_live(slots=1, pace=100.0)
    body = {"model": "scripted", "prompt": "x" * 10_000}
    async with httpx.AsyncClient(base_url=live.url, timeout=30) as client:
        first = asyncio.create_task(client.post("/v1/completions", json=body))
        await live.until(at_work)
        second = asyncio.create_task(client.post("/v1/completions", json=body))
        await live.until(lambda stats: stats.waiting == 1)
        second.cancel()
        await live.until(lambda stats: stats.waiting == 0)
        first.cancel()
        await live.until(idle)


async def test_others_do_not_notice(go_live: Callable[..., Any]) -> None:
    live = go_live(pace=200.0)
    async with httpx.AsyncClient(base_url=live.url, timeout=30) as client:
        leaving = [
            asyncio.create_task(client.post("/v1/completions", json={"model": "scripted", "prompt": "x" * 5000}))
            for _ in range(4)
        ]
        staying = asyncio.create_task(client.post("/v1/completions", json={"model": "scripted", "prompt": "y" * 50}))
        await live.until(at_work)
        for each in leaving:
            each.cancel()
        assert (await staying).json()["choices"][0]["text"] == "y" * 50
    await live.until(idle)


async def test_a_client_that_no_longer_wants_its_vectors_frees_its_slot(go_live: Callable[..., Any]) -> None:
    live = go_live(pace=100.0)
    async with httpx.AsyncClient(base_url=live.url, timeout=30) as client:
        asking = asyncio.create_task(client.post("/v1/embeddings", json={"input": ["x" * 500] * 1000}))
        await live.until(lambda stats: stats.prompt_tokens > 0)
        asking.cancel()
        await live.until(idle)
    assert live.model.engine.stats().prompt_tokens < 500_000
