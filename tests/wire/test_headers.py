import re
from collections.abc import MutableMapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from arriero.wire.headers import ResponseHeaders, ignored_header


async def headers_of(method: str) -> dict[str, str]:
    sent: list[MutableMapping[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
        await send({"type": "http.response.body", "body": b"hello"})

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("nobody asked for the body")

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await ResponseHeaders(app)({"type": "http", "method": method}, receive, send)
    assert sent[1] == {"type": "http.response.body", "body": b"hello"}
    return {name.decode(): value.decode() for name, value in sent[0]["headers"]}


async def test_every_answer_has_an_id_of_its_own() -> None:
    first, second = await headers_of("GET"), await headers_of("GET")
    assert re.fullmatch(r"req_[0-9a-f]{32}", first["x-request-id"])
    assert first["x-request-id"] != second["x-request-id"]
    assert first["x-own"] == "1"
    assert "openai-processing-ms" not in first


async def test_work_is_timed_in_milliseconds() -> None:
    assert (await headers_of("POST"))["openai-processing-ms"].isdecimal()


async def test_other_protocols_pass_untouched() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        raise AssertionError

    await ResponseHeaders(app)({"type": "lifespan"}, receive, send)
    assert seen == [({"type": "lifespan"}, receive, send)]


def test_unknown_parameters_are_listed() -> None:
    assert ignored_header(["guided_json", "messages.0.weight"]) == "guided_json,messages.0.weight"


@given(st.lists(st.text(min_size=1)))
def test_the_list_fits_a_header_whatever_clients_invent(names: list[str]) -> None:
    value = ignored_header(name.encode("utf-8", "replace").decode() for name in names)
    assert re.fullmatch(r"[A-Za-z0-9_.~%,-]*", value)
    assert len(value) <= 1024


def test_a_list_that_is_too_long_says_so() -> None:
    assert ignored_header(["a" * 998, "b" * 10]) == "a" * 998 + ",..."
    assert ignored_header(["a" * 1001]) == "..."
