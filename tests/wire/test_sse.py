import asyncio
import logging
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

import orjson
import pytest

from arriero.errors import EngineDied, Overloaded
from arriero.wire.scope import set_lost
from arriero.wire.sse import DONE, HEARTBEAT, EventStream, event, while_connected


class Client:
    """The other end of one ASGI exchange, its request already read."""

    def __init__(self) -> None:
        self.sent: list[MutableMapping[str, Any]] = []
        self.left = asyncio.Event()
        self.reading = asyncio.Event()
        self.reading.set()

    async def receive(self) -> MutableMapping[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        await self.reading.wait()
        self.sent.append(message)

    async def get(self, stream: EventStream) -> None:
        await stream({"type": "http"}, self.receive, self.send)

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]


async def pieces(*items: bytes | float | Exception) -> AsyncGenerator[bytes, None]:
    """Numbers are seconds to wait."""
    for item in items:
        if isinstance(item, Exception):
            raise item
        if isinstance(item, bytes):
            yield item
        else:
            await asyncio.sleep(item)


async def test_a_stream_is_its_pieces_then_done() -> None:
    client = Client()
    await client.get(EventStream(pieces(b"a", b"b"), [(b"x-own", b"1")]))
    start = client.sent[0]
    assert (start["type"], start["status"]) == ("http.response.start", 200)
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-cache"
    assert headers[b"x-own"] == b"1"
    assert client.bodies == [b"a", b"b", DONE]
    assert [message["more_body"] for message in client.sent[1:]] == [True, True, False]


async def test_an_error_before_the_first_piece_keeps_its_status() -> None:
    client = Client()
    with pytest.raises(Overloaded):
        await client.get(EventStream(pieces(0.01, Overloaded("full", retry_after=1))))
    assert client.sent == []


async def test_a_later_error_becomes_an_event_and_no_done_follows() -> None:
    client = Client()
    await client.get(EventStream(pieces(b"a", EngineDied("It broke."))))
    assert client.bodies[0] == b"a"
    assert orjson.loads(client.bodies[1].removeprefix(b"data: "))["error"]["message"] == "It broke."
    assert len(client.bodies) == 2
    assert client.sent[-1]["more_body"] is False


async def test_a_bug_in_mid_stream_is_logged_and_told_without_details(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    with caplog.at_level(logging.ERROR):
        await client.get(EventStream(pieces(b"a", RuntimeError("password"))))
    assert b"server_error" in client.bodies[-1]
    assert b"password" not in client.bodies[-1]
    assert "password" in caplog.text


async def test_a_long_silence_before_the_first_piece_is_filled_with_comments() -> None:
    client = Client()
    await client.get(EventStream(pieces(0.2, b"a"), patience=0.02, heartbeat=0.02))
    assert client.sent[0]["status"] == 200
    assert client.bodies[:2] == [HEARTBEAT, HEARTBEAT]
    assert client.bodies[-2:] == [b"a", DONE]


async def test_an_error_after_comments_is_an_event() -> None:
    client = Client()
    await client.get(EventStream(pieces(0.1, EngineDied("It broke.")), patience=0.02, heartbeat=0.02))
    assert client.bodies[0] == HEARTBEAT
    assert b"It broke." in client.bodies[-1]


async def test_nothing_follows_the_end_when_a_comment_is_due_at_the_same_time() -> None:
    client, over = Client(), asyncio.Event()

    async def source() -> AsyncGenerator[bytes, None]:
        yield b"a"
        await over.wait()

    answering = asyncio.create_task(client.get(stream := EventStream(source(), patience=0.001, heartbeat=0.001)))
    await asyncio.sleep(0.02)
    assert HEARTBEAT in client.bodies
    over.set()
    stream._beat(client.send)
    await answering
    assert client.bodies[-1] == DONE


async def test_a_silence_later_on_is_filled_too() -> None:
    client = Client()
    await client.get(EventStream(pieces(b"a", 0.2, b"b"), patience=0.02, heartbeat=0.02))
    first, *between, last, done = client.bodies
    assert (first, last, done) == (b"a", b"b", DONE)
    assert between
    assert set(between) == {HEARTBEAT}


async def test_a_client_that_does_not_read_gets_no_comments_in_between() -> None:
    client = Client()
    client.reading.clear()
    answering = asyncio.create_task(client.get(EventStream(pieces(b"a", b"b"), patience=0.01, heartbeat=0.01)))
    await asyncio.sleep(0.1)
    client.reading.set()
    await answering
    assert client.bodies == [b"a", b"b", DONE]


@pytest.mark.parametrize("before", [(), (b"a",)], ids=["before the first piece", "later"])
async def test_a_client_that_leaves_closes_the_source_at_once(before: tuple[bytes, ...]) -> None:
    client, closed = Client(), asyncio.Event()

    async def source() -> AsyncGenerator[bytes, None]:
        try:
            for each in before:
                yield each
            await asyncio.Event().wait()
        finally:
            closed.set()

    answering = asyncio.create_task(client.get(EventStream(source())))
    await asyncio.sleep(0.02)
    assert client.bodies == list(before)
    client.left.set()
    await answering
    assert closed.is_set()
    assert DONE not in client.bodies


async def test_a_client_that_leaves_while_it_does_not_read_closes_the_source() -> None:
    client, closed = Client(), asyncio.Event()

    async def source() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"a"
        finally:
            closed.set()

    client.reading.clear()
    answering = asyncio.create_task(client.get(EventStream(source())))
    await asyncio.sleep(0.02)
    client.left.set()
    await answering
    assert closed.is_set()


async def test_cancelling_the_answer_closes_the_source() -> None:
    client, closed = Client(), asyncio.Event()

    async def source() -> AsyncGenerator[bytes, None]:
        try:
            yield b"a"
            await asyncio.Event().wait()
        finally:
            closed.set()

    answering = asyncio.create_task(client.get(EventStream(source())))
    await asyncio.sleep(0.02)
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert closed.is_set()


async def test_work_for_a_client_that_stays_is_done() -> None:
    async def work() -> str:
        await asyncio.sleep(0.01)
        return "done"

    assert await while_connected({}, Client().receive, work()) == "done"


async def test_an_error_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise EngineDied("It broke.")

    with pytest.raises(EngineDied, match="It broke"):
        await while_connected({}, Client().receive, work())


async def test_work_for_a_client_that_leaves_is_cancelled_and_over() -> None:
    client, cancelled = Client(), False

    async def work() -> str:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise
        return "never"

    working = asyncio.create_task(while_connected({}, client.receive, work()))
    await asyncio.sleep(0.02)
    client.left.set()
    assert await working is None
    assert cancelled


async def test_a_server_that_tells_of_lost_connections_is_not_asked() -> None:
    scope: dict[str, Any] = {}
    lost = asyncio.get_running_loop().create_future()
    set_lost(scope, lost)

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("nobody has to ask")

    async def work() -> str:
        asyncio.get_running_loop().call_later(0.01, lost.set_result, None)
        await asyncio.Event().wait()
        return "never"

    assert await while_connected(scope, receive, work()) is None
    task = asyncio.current_task()
    assert task
    assert not task.cancelling()
    assert await while_connected(scope, receive, asyncio.sleep(0.01, "who comes too late")) is None


async def test_who_leaves_when_the_work_is_done_cancels_nothing() -> None:
    scope: dict[str, Any] = {}
    lost = asyncio.get_running_loop().create_future()
    set_lost(scope, lost)

    async def work() -> str:
        lost.set_result(None)
        return "done"

    assert await while_connected(scope, Client().receive, work()) == "done"
    await asyncio.sleep(0)


async def test_work_whose_task_is_cancelled_is_cancelled_and_over() -> None:
    ended = False

    async def work() -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            ended = True

    working = asyncio.create_task(while_connected({}, Client().receive, work()))
    await asyncio.sleep(0.02)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert ended


def test_an_event_is_one_line_of_data() -> None:
    assert event(b'{"a":1}') == b'data: {"a":1}\n\n'
