import asyncio
from typing import Any

import httpx

from arriero.gateway.gate import Gate
from arriero.wire.sse import Receive, Send


async def hello(scope: Any, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def client_of(gate: Gate) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://arriero")


async def test_what_comes_too_early_waits_a_while_and_is_turned_away() -> None:
    gate = Gate(lambda: None, patience=0.01)
    async with client_of(gate) as client:
        early = await client.get("/v1/models")
        assert (await client.get("/health/ready")).json() == {"status": "loading"}
        assert (await client.get("/health/ready")).status_code == 503
        assert (await client.get("/health/live")).status_code == 200
    assert (early.status_code, early.headers["retry-after"]) == (503, "5")
    assert early.json()["error"]["code"] == "overloaded"


async def test_who_waits_is_let_in_when_the_gate_opens() -> None:
    gate = Gate(lambda: None)
    async with client_of(gate) as client:
        early = asyncio.create_task(client.get("/v1/models"))
        await asyncio.sleep(0)
        gate.open(hello)
        assert (await early).text == "hello"
        assert (await client.get("/health/ready")).json() == {"status": "ready"}


async def test_a_shut_gate_waits_for_those_inside_and_turns_others_away() -> None:
    gate, go_on = Gate(lambda: None), asyncio.Event()

    async def slow(scope: Any, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            await go_on.wait()
        await hello(scope, receive, send)

    gate.open(slow)
    async with client_of(gate) as client:
        inside = asyncio.create_task(client.get("/slow"))
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(gate.close(60))
        await asyncio.sleep(0.01)
        late = await client.get("/v1/models")
        assert (late.status_code, late.headers["connection"], late.headers["retry-after"]) == (503, "close", "1")
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "stopping"})
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/metrics")).text == "hello"
        assert not closing.done()
        go_on.set()
        assert (await inside).text == "hello"
        await closing


async def test_who_stays_is_not_waited_for_longer_than_the_grace_period() -> None:
    gate = Gate(lambda: None)

    async def for_ever(scope: Any, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    gate.open(for_ever)
    async with client_of(gate) as client:
        inside = asyncio.create_task(client.get("/"))
        await asyncio.sleep(0.01)
        await gate.close(0.01)
        inside.cancel()


async def test_a_server_that_is_ill_says_why() -> None:
    async with client_of(Gate(lambda: "the event loop is too slow")) as client:
        answer = await client.get("/health/live")
    assert (answer.status_code, answer.json()["reason"]) == (503, "the event loop is too slow")
