"""Keys share a busy engine, and nobody waits longer than they said they would."""

import asyncio
from typing import Any


async def test_one_request_waits_for_one_of_fifty(guard: Any) -> None:
    server = await guard(slots=1, pace=2000)
    for name in ("many", "one"):
        server.key(name)
    ended: list[str] = []

    async def ask(name: str) -> None:
        assert (await server.chat(name, "some words", max_tokens=8)).status_code == 200
        ended.append(name)

    many = [asyncio.create_task(ask("many")) for _ in range(50)]
    await server.served.until(lambda stats: stats.waiting >= 40)
    before = len(ended)
    await ask("one")
    # One ran, one more may have ended before the engine saw the request, and one while its answer came back.
    assert ended.index("one") <= before + 3
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
