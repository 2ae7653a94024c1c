"""How often the model's thread calls the event loop, and the server the socket."""

import asyncio
import threading
from collections import Counter
from contextlib import aclosing

import httpx
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from arriero.core import GenerationRequest
from arriero.engine.local import LocalEngine
from guards.counts import CountingRunner, check, tokens


async def test_hand_overs_to_the_event_loop(monkeypatch):
    """One a step, however many requests it had news for."""
    everybody_is_here = threading.Event()

    class Waiting(CountingRunner):
        def step(self, rows):
            everybody_is_here.wait()
            return super().step(rows)

    runner = Waiting(reply=lambda prompt: [7] * 100)
    engine = LocalEngine(lambda: runner, constraints=lambda request: None, chunk_beside_decode=512)
    await engine.start()
    calls = Counter()
    loop = asyncio.get_running_loop()
    call = loop.call_soon_threadsafe

    def counted(*arguments, **options):
        calls["hand-overs"] += 1
        return call(*arguments, **options)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)

    async def answer(seed):
        request = GenerationRequest(id=str(seed), prompts=(tokens(20, seed),), max_tokens=30)
        async with aclosing(engine.generate(request)) as events:
            return [event async for batch in events for event in batch]

    asking = asyncio.gather(*map(answer, range(16)))
    while engine.stats().waiting + engine.stats().running < 16:  # noqa: ASYNC110  # nobody announces it
        await asyncio.sleep(0)
    everybody_is_here.set()
    answers = await asking
    assert all(len(events) == 31 for events in answers)
    check("16 answers", calls, {"hand-overs": runner.counts["steps"]})
    check("16 answers", {"steps": runner.counts["steps"]}, {"steps": 32})
    await engine.close()


@pytest.fixture
def written(monkeypatch):
    """What is written to the sockets of servers, piece by piece."""
    pieces = []
    connect = HttpToolsProtocol.connection_made

    def connection_made(self, transport):
        connect(self, transport)
        self.transport = Transport(transport, pieces)

    monkeypatch.setattr(HttpToolsProtocol, "connection_made", connection_made)
    return pieces


class Transport:
    """A transport that remembers what is written to it."""

    def __init__(self, transport, pieces):
        self._transport = transport
        self._pieces = pieces

    def __getattr__(self, name):
        return getattr(self._transport, name)

    def write(self, data):
        self._pieces.append(bytes(data))
        self._transport.write(data)


def test_writes_to_the_socket(written, go_live):
    """One for each event that a client sees, beside the head and the end of the answer."""
    live = go_live(pace=500)
    body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 40}
    with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=body) as answer:
        events = [line for line in answer.iter_lines() if line]
    check("writes of a stream", {"writes": len(written)}, {"writes": len(events) + 1})
    written.clear()
    httpx.post(f"{live.url}/v1/chat/completions", json=body | {"stream": False}).raise_for_status()
    check("writes of an answer in one piece", {"writes": len(written)}, {"writes": 2})
