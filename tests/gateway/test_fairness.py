"""Keys share a busy engine, and nobody waits longer than they said they would."""

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from arriero.compute import EncoderInfo
from arriero.engine.encoder import EncodingEngine


async def test_one_request_waits_for_one_of_fifty(guard: Any) -> None:
    server = await guard(slots=1, pace=100)
    for name in ("many", "one"):
        server.key(name)
    ended: list[str] = []

    async def ask(name: str) -> None:
        assert (await server.chat(name, "some words", max_tokens=4)).status_code == 200
        ended.append(name)

    many = [asyncio.create_task(ask("many")) for _ in range(50)]
    await server.served.until(lambda stats: stats.waiting >= 40)
    before = len(ended)
    await ask("one")
    # One ran, others may have ended before the engine saw the request, and while its answer came back.
    assert ended.index("one") <= before + 5
    await asyncio.gather(*many)
    assert ended.count("many") == 50


async def test_a_full_queue_has_room_for_who_has_none_in_it(guard: Any) -> None:
    server = await guard(slots=1, max_queue=4, pace=100)
    for name in ("many", "one"):
        server.key(name)
    many = [asyncio.create_task(server.chat("many", "word " * 10)) for _ in range(5)]
    await server.served.until(lambda stats: stats.waiting == 4)
    refused = await server.chat("many")
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    one = asyncio.create_task(server.chat("one", "a"))
    await server.served.until(lambda stats: stats.waiting == 5)
    for task in many:
        task.cancel()
    assert (await one).status_code == 200


async def test_a_deadline_ends_what_waits_and_what_is_said(guard: Any) -> None:
    server = await guard(slots=1, pace=50)
    server.key("alice")
    late = await server.chat("alice", "word " * 200, deadline=0.3)
    assert late.status_code == 504
    assert late.json()["error"]["code"] == "deadline_exceeded"
    assert late.headers["x-should-retry"] == "false"
    stream = await server.chat("alice", "word " * 200, deadline=0.5, stream=True)
    assert stream.status_code == 200
    assert "deadline_exceeded" in stream.text
    assert "[DONE]" not in stream.text
    running = asyncio.create_task(server.chat("alice", "word " * 200))
    await server.served.until(lambda stats: stats.running == 1)
    waiting = await server.chat("alice", deadline=0.1)
    assert waiting.status_code == 504
    running.cancel()
    await server.served.until(lambda stats: not stats.running and not stats.waiting)
    assert (await server.chat("alice", "a", deadline=60)).status_code == 200
    for wrong in (0, -1, 86_401, "soon"):
        answer = await server.chat("alice", deadline=wrong)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "deadline")


async def test_priority_orders_ones_own_requests(guard: Any) -> None:
    server = await guard(slots=1, pace=100)
    server.key("alice")
    first = asyncio.create_task(server.chat("alice", "word " * 10))
    await server.served.until(lambda stats: stats.running == 1)
    ended: list[int] = []

    async def ask(priority: int) -> None:
        assert (await server.chat("alice", "a", priority=priority)).status_code == 200
        ended.append(priority)

    tasks = []
    for waiting, priority in enumerate((5, 0, -5), 1):
        tasks.append(asyncio.create_task(ask(priority)))
        await server.served.until(lambda stats, waiting=waiting: stats.waiting == waiting)
    await asyncio.gather(first, *tasks)
    assert ended == [-5, 0, 5]


class Gate:
    """An encoder that computes when it is let."""

    info = EncoderInfo(context=100, vocab_size=300, width=1, invariant=True)

    def __init__(self) -> None:
        self.may_go_on = threading.Semaphore(0)

    def encode(self, inputs: Any, first_segments: Any) -> Any:
        self.may_go_on.acquire()
        return np.ones((len(inputs), 1), np.float32)

    def close(self) -> None:
        """Nothing to release."""


ENCODING: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "w" * 50},
    "/v1/rerank": {"query": "w" * 50, "documents": ["w" * 50]},
    "/v1/score": {"text_1": "w" * 50, "text_2": "w" * 50},
}


@pytest.mark.parametrize("path", ENCODING)
async def test_an_encoder_has_turns_priorities_and_deadlines_too(path: str, guard: Any) -> None:
    encoder = Gate()
    engine = EncodingEngine(lambda: encoder, max_queue=6, batch_tokens=50)
    await engine.start()
    server = await guard(engine=engine)
    for name in ("many", "one"):
        server.key(name)
    ended: list[Any] = []

    async def ask(name: str, number: int, **more: Any) -> Any:
        answer = await server.ask(name, "POST", path, json={"model": server.model, **ENCODING[path], **more})
        ended.append((name, number))
        return answer

    try:
        first = asyncio.create_task(ask("many", -1))
        await server.served.until(lambda stats: stats.running)
        many = [asyncio.create_task(ask("many", number, priority=5 - number)) for number in range(6)]
        await server.served.until(lambda stats: stats.waiting == 6)
        refused = await ask("many", -2)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        one = asyncio.create_task(ask("one", 0))
        await server.served.until(lambda stats: stats.waiting == 7)
        late = await ask("one", -1, deadline=0.05)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        encoder.may_go_on.release(100)
        assert {each.status_code for each in await asyncio.gather(first, one, *many)} == {200}
        assert ended.index(("one", 0)) <= ended.index(("many", -1)) + 2
        assert [number for name, number in ended if name == "many"] == [-2, -1, 5, 4, 3, 2, 1, 0]
        assert (await ask("one", 1, deadline=0)).json()["error"]["param"] == "deadline"
    finally:
        encoder.may_go_on.release(100)
        await engine.close()
