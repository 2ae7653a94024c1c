import asyncio
import json
import string
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arriero.api.generation import Delivery
from arriero.api.parameters import ChatParameters, CompletionParameters

JSON = {"content-type": "application/json"}
MESSAGES = b'"model":"scripted","messages":[{"role":"user","content":"Hi"}]'


async def send(served: Any, content: Any, headers: dict[str, str] = JSON, path: str = "chat/completions") -> Any:
    return await served.client.post(f"/v1/{path}", content=content, headers=headers)


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    return dict(error)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b"{" + MESSAGES + b',"temperature":NaN}',
        b"{" + MESSAGES + b',"temperature":Infinity}',
        b"{" + MESSAGES + b',"temperature":1e999}',
        b"{" + MESSAGES + b',"seed":' + b"9" * 5000 + b"}",
        b'{"model":"\\ud800"}',
        b'{"model":"\xff"}',
        b"\xef\xbb\xbf{" + MESSAGES + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\x00",
    ],
)
async def test_what_is_not_json_is_refused(served: Any, body: bytes) -> None:
    error = error_of(await send(served, body), 400)
    assert (error["param"], error["code"]) == (None, "invalid_json")


@pytest.mark.parametrize("body", [b"[]", b"null", b"5", b'"text"', b"true"])
async def test_what_is_not_an_object_is_refused(served: Any, body: bytes) -> None:
    assert "object" in error_of(await send(served, body), 400)["message"]


async def test_deep_nesting_of_an_unknown_key_is_tolerated(served: Any) -> None:
    answer = await send(served, b"{" + MESSAGES + b',"deep":' + b"[" * 900 + b"]" * 900 + b"}")
    assert answer.status_code == 200
    assert answer.headers["x-arriero-ignored"] == "deep"


async def test_null_characters_are_text(served: Any) -> None:
    answer = await served.chat("a\0b")
    assert answer.json()["choices"][0]["message"]["content"] == "a\0b"


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json"]
)
async def test_a_body_that_is_not_declared_to_be_json_is_refused(served: Any, kind: str | None) -> None:
    error = error_of(await send(served, b"{" + MESSAGES + b"}", {"content-type": kind} if kind else {}), 415)
    assert error["code"] == "unsupported_media_type"


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"])
async def test_json_may_be_declared_in_other_words(served: Any, kind: str) -> None:
    assert (await send(served, b"{" + MESSAGES + b"}", {"content-type": kind})).status_code == 200


async def test_a_body_over_the_limit_is_refused_unread(serve: Callable[..., Awaitable[Any]]) -> None:
    served = await serve(delivery=Delivery(body_limit=1000))
    error = error_of(await send(served, b"x" * 1001), 413)
    assert error["code"] == "body_too_large"
    assert "1000" in error["message"]
    assert (await send(served, b"{" + MESSAGES + b',"user":"' + b"x" * 900 + b'"}')).status_code == 200


async def test_a_body_of_no_declared_length_is_counted_while_it_is_read(serve: Callable[..., Awaitable[Any]]) -> None:
    served = await serve(delivery=Delivery(body_limit=1000))
    num_read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_read
        while True:
            num_read += 1
            yield b"x" * 100

    error_of(await send(served, endless()), 413)
    assert num_read == 11


async def test_a_declared_length_beyond_all_measure_is_refused(served: Any) -> None:
    error_of(await send(served, b"{}", JSON | {"content-length": "9" * 100}), 413)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("POST", "/v2/chat/completions", 404, "unknown_url"),
        ("GET", "/", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
    ],
)
async def test_a_wrong_path_or_method_is_answered_in_kind(
    served: Any, method: str, path: str, status: int, code: str
) -> None:
    answer = await served.client.request(method, path)
    assert error_of(answer, status)["code"] == code
    assert ("allow" in answer.headers) == (status == 405)


async def test_an_engine_that_fails_answers_500(served: Any) -> None:
    fail(served)
    for stream in (False, True):
        answer = await served.chat(stream=stream)
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert answer.json()["error"]["code"] == "engine_died"


async def test_an_engine_that_was_closed_answers_503(served: Any) -> None:
    await served.model.engine.close()
    for stream in (False, True):
        answer = await served.chat(stream=stream)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"


def fail(served: Any) -> None:
    """Have the engine's next step go wrong."""

    def step(rows: object) -> None:
        raise RuntimeError("no memory")

    served.model.engine._thread._work.runner.step = step


@pytest.mark.parametrize("code", ["engine_died", "overloaded"])
async def test_an_engine_that_ends_in_mid_stream_ends_it_with_an_error(
    serve: Callable[..., Awaitable[Any]], code: str
) -> None:
    served = await serve(pace=50.0)
    answering = asyncio.create_task(served.chat("x" * 1000, stream=True))
    await served.until(lambda stats: stats.generated_tokens > 3)
    if code == "engine_died":
        fail(served)
    else:
        await served.model.engine.close()
    answer = await answering
    assert answer.status_code == 200
    *_, last, rest = answer.text.split("\n\n")
    assert rest == ""
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == code


async def test_a_bug_is_answered_in_kind(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("password")

    monkeypatch.setattr(type(served.model.tokenizer), "encode", broken)
    answer = await served.complete()
    assert answer.status_code == 500
    assert answer.headers["x-request-id"]
    assert answer.json()["error"]["type"] == "server_error"
    assert "password" not in answer.text


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
anything = st.recursive(
    scalars,
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3),
    max_leaves=8,
)
message = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "system", "assistant", "tool", "developer"]) | anything,
        "content": st.text() | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()})) | anything,
        "name": st.text() | anything,
    },
)


def bodies(model: type[ChatParameters] | type[CompletionParameters]) -> st.SearchStrategy[dict[str, Any]]:
    known = dict.fromkeys(model.model_fields, anything) | {
        "model": st.just("scripted") | anything,
        "prompt": st.text() | st.lists(st.integers(0, 300)) | anything,
        "messages": st.lists(message, max_size=3) | anything,
        "max_tokens": st.integers(1, 20) | anything,
        "n": st.integers(1, 3) | anything,
        "stream": st.booleans(),
        "stop": st.text() | st.lists(st.text(), max_size=5) | anything,
    }
    # Mostly few parameters at once, so that many bodies get past the checks.
    few = st.lists(st.sampled_from(sorted(known)), max_size=4, unique=True)
    required = {"model", "prompt" if model is CompletionParameters else "messages"}
    return few.flatmap(lambda names: st.fixed_dictionaries({name: known[name] for name in required | set(names)}))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies(ChatParameters) | anything)
async def test_no_body_breaks_chat(served: Any, body: Any) -> None:
    answer = await send(served, json.dumps(body).encode())
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        error_of(answer, answer.status_code)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies(CompletionParameters) | anything)
async def test_no_body_breaks_completions(served: Any, body: Any) -> None:
    answer = await send(served, json.dumps(body).encode(), path="completions")
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        error_of(answer, answer.status_code)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary() | st.text(string.printable).map(str.encode))
async def test_no_bytes_break_the_reading(served: Any, body: bytes) -> None:
    assert (await send(served, body)).status_code == 400
