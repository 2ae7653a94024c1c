import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arriero.gateway.entrance import Entrance, Exchange
from arriero.wire.scope import REQUEST_ID, meter_of
from arriero.wire.sse import Message, Receive, Send

Seen = tuple[list[Message], list[Exchange]]


async def nothing() -> Message:
    raise AssertionError("nobody asked for the body")


async def greet(scope: Any, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": b"hel", "more_body": True})
    await send({"type": "http.response.body", "body": b"lo"})


async def ask(
    app: Callable[..., Any] = greet, *headers: tuple[bytes, bytes], method: str = "POST", receive: Receive = nothing
) -> Seen:
    """What was sent, and what the watcher saw."""
    sent: list[Message] = []
    seen: list[Exchange] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": "/", "headers": headers}
    await Entrance(app, [seen.append], keep_bodies=receive is not nothing)(scope, receive, send)
    return sent, seen


def headers(sent: list[Message]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in sent[0]["headers"]}


async def test_every_answer_has_an_id_of_its_own() -> None:
    (first, _), (second, _) = await ask(), await ask()
    assert re.fullmatch(r"req_[0-9a-f]{32}", headers(first)["x-request-id"])
    assert headers(first)["x-request-id"] != headers(second)["x-request-id"]
    assert headers(first)["x-own"] == "1"
    assert first[1:] == [
        {"type": "http.response.body", "body": b"hel", "more_body": True},
        {"type": "http.response.body", "body": b"lo"},
    ]


async def test_what_is_posted_is_timed_in_milliseconds() -> None:
    assert headers((await ask())[0])["openai-processing-ms"].isdecimal()
    assert "openai-processing-ms" not in headers((await ask(method="GET"))[0])


async def test_a_well_formed_id_is_taken() -> None:
    sent, seen = await ask(greet, (b"x-request-id", b"0b7c-41:a/b=c@d+e.f_G"))
    assert headers(sent)["x-request-id"] == "0b7c-41:a/b=c@d+e.f_G" == seen[0].id


@given(st.binary(max_size=140).filter(lambda value: not re.fullmatch(rb"[A-Za-z0-9._:/+=@-]{1,128}", value)))
async def test_any_other_id_is_replaced(value: bytes) -> None:
    sent, _ = await ask(greet, (b"x-request-id", value))
    assert re.fullmatch(r"req_[0-9a-f]{32}", headers(sent)["x-request-id"])


async def test_the_watcher_sees_how_it_went() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        meter_of(scope).completion_tokens = 3
        assert REQUEST_ID.get().startswith("req_")
        await greet(scope, receive, send)

    _, [exchange] = await ask(app)
    assert (exchange.outcome, exchange.complete, exchange.failed) == (200, True, False)
    assert exchange.meter.completion_tokens == 3
    assert exchange.began <= exchange.ended


async def test_an_answer_that_was_broken_off_counts_as_such() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"hel", "more_body": True})

    async def gone(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 499})
        await send({"type": "http.response.body", "body": b""})

    assert (await ask(app))[1][0].outcome == 499
    assert (await ask(gone))[1][0].outcome == 499


async def test_an_application_that_breaks_down_is_seen_too() -> None:
    seen: list[Exchange] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        raise ZeroDivisionError

    async def send(message: Message) -> None:
        pass

    entrance = Entrance(app, [seen.append])
    with pytest.raises(ZeroDivisionError):
        await entrance({"type": "http", "method": "GET", "headers": []}, nothing, send)
    assert (seen[0].outcome, entrance.num_running) == (500, 0)


async def test_bodies_are_kept_only_where_they_are_wanted() -> None:
    async def read(scope: Any, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await greet(scope, receive, send)

    messages = [{"type": "http.request", "body": b"x" * 50_000, "more_body": index < 2} for index in range(3)]
    _, [exchange] = await ask(read, receive=iter_of(messages))
    assert exchange.body == b"x" * 65_536
    _, [exchange] = await ask()
    assert exchange.body is None


def iter_of(messages: list[Message]) -> Receive:
    waiting = iter(messages)

    async def receive() -> Message:
        return next(waiting)

    return receive


async def test_other_protocols_pass_untouched() -> None:
    seen = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        seen.append((scope, receive, send))

    async def send(message: Message) -> None:
        raise AssertionError

    await Entrance(app)({"type": "lifespan"}, nothing, send)
    assert seen == [({"type": "lifespan"}, nothing, send)]
