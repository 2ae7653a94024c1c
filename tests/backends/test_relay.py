"""What passes through unchanged, what is kept back, and what becomes of answers that are none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from arriero.api.application import application
from arriero.backends.upstream import Upstream
from arriero.core import Caller
from arriero.pool import Pool
from arriero.upstream_tables import UpstreamTable
from arriero.wire.scope import set_caller
from backends.conftest import CHAT, Asked, Behaviour, Faulty, Gateway, until

StartFaulty = Callable[[Behaviour], Awaitable[Faulty]]
StartGateway = Callable[..., Awaitable[Gateway]]

ODD = b'{"model" : "theirs",  "choices":[],\n "usage":{"prompt_tokens":5,"completion_tokens":2}, "x": 1.0}'
EVENTS = [b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', b": a sign of life\n\n", b"data: [DONE]\n\n"]


async def odd(asked: Asked) -> None:
    asked.answer(ODD)


async def streams(asked: Asked) -> None:
    asked.begin_events()
    for each in EVENTS:
        await asked.chunk(each)
    await asked.chunk(b"")


def error_of(response: httpx.Response) -> tuple[int, str | None]:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return response.status_code, error["code"]


async def test_an_answer_passes_byte_for_byte(faulty: StartFaulty, gateway: StartGateway) -> None:
    server = await faulty(odd)
    front = await gateway({"upstream": server.url})
    response = await front.chat(unheard_of={"deep": [1]}, temperature=0.5)
    assert response.content == ODD
    assert response.headers["content-type"] == "application/json"
    assert server.asked[0].line == "POST /v1/chat/completions HTTP/1.1"
    assert server.asked[0].json == CHAT | {"unheard_of": {"deep": [1]}, "temperature": 0.5}
    meter = front.meters[0]
    assert (meter.endpoint, meter.model) == ("/v1/chat/completions", "m")
    assert (meter.prompt_tokens, meter.completion_tokens) == (5, 2)
    assert meter.error is None


async def test_a_stream_passes_event_for_event(faulty: StartFaulty, gateway: StartGateway) -> None:
    go_on = asyncio.Event()

    async def waits(asked: Asked) -> None:
        asked.begin_events()
        for each in EVENTS:
            await asked.chunk(each)
            await go_on.wait()
            go_on.clear()
        await asked.chunk(b"")

    server = await faulty(waits)
    front = await gateway({"upstream": server.url})
    seen = []
    async with front.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        assert response.headers["content-type"] == "text/event-stream"
        async for data in response.aiter_raw():
            seen.append(data)
            go_on.set()
    assert seen == EVENTS
    assert front.meters[0].completion_tokens == 1


@pytest.mark.parametrize("path", ["completions", "embeddings", "rerank", "score", "chat/completions"])
async def test_every_endpoint_passes(path: str, faulty: StartFaulty, gateway: StartGateway) -> None:
    server = await faulty(odd)
    front = await gateway({"upstream": f"http://127.0.0.1:{server.port}/some/where"})
    assert (await front.post(f"/v1/{path}", what="ever")).content == ODD
    assert server.asked[0].line == f"POST /some/where/{path} HTTP/1.1"


async def test_endpoints_beside_v1_are_asked_of_the_root(faulty: StartFaulty, gateway: StartGateway) -> None:
    server = await faulty(odd)
    front = await gateway({"upstream": f"http://127.0.0.1:{server.port}/a/v1"})
    for path in ("tokenize", "detokenize"):
        assert (await front.post(f"/{path}")).content == ODD
        assert server.asked[-1].line == f"POST /a/{path} HTTP/1.1"


async def test_endpoints_that_are_not_ours_pass_too(faulty: StartFaulty, gateway: StartGateway) -> None:
    async def speaks(asked: Asked) -> None:
        asked.answer(b"\x00\x01\xff", kind="audio/mpeg")

    server = await faulty(speaks)
    front = await gateway({"upstream": server.url})
    response = await front.client.post("/v1/audio/speech?a=b%20c", json={"model": "m", "input": "Hello"})
    assert response.content == b"\x00\x01\xff"
    assert response.headers["content-type"] == "audio/mpeg"
    assert server.asked[0].line == "POST /v1/audio/speech?a=b%20c HTTP/1.1"
    assert front.meters[0].endpoint == "/v1/{path}"


@pytest.mark.parametrize("path", ["/v1/../admin", "/v1/%2e%2e/admin", "/v1/a%20b", "/v1/a%0d%0ab", "/v1//a", "/admin"])
async def test_paths_that_lead_elsewhere_do_not_pass(path: str, faulty: StartFaulty, gateway: StartGateway) -> None:
    server = await faulty(odd)
    front = await gateway({"upstream": server.url})
    request = front.client.build_request("POST", "/", json={"model": "m"})
    request.url = request.url.copy_with(raw_path=path.encode())
    assert error_of(await front.client.send(request)) == (404, "unknown_url")
    assert not server.asked


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        (b'{"model": "m"', "application/json", (400, "invalid_json")),
        (b'["m"]', "application/json", (400, None)),
        (b'{"model": 3, "messages": []}', "application/json", (400, "invalid_type")),
        (
            b'{"model": "other", "messages": [{"role": "user", "content": "x"}]}',
            "application/json",
            (404, "model_not_found"),
        ),
        (b'{"model": "m"}', "text/plain", (415, "unsupported_media_type")),
        (b'{"model": "m", "x": "' + b"x" * 3000 + b'"}', "application/json", (413, "body_too_large")),
    ],
)
async def test_what_names_no_model_of_theirs_is_answered_here(
    content: bytes, kind: str, expected: Any, faulty: StartFaulty, gateway: StartGateway
) -> None:
    server = await faulty(odd)
    front = await gateway({"upstream": server.url}, body_limit=2000)
    response = await front.client.post("/v1/chat/completions", content=content, headers={"content-type": kind})
    assert error_of(response) == expected
    assert not server.asked


async def test_of_two_models_in_one_body_the_server_sees_the_one_that_was_looked_at(
    faulty: StartFaulty, gateway: StartGateway
) -> None:
    server = await faulty(odd)
    front = await gateway({"upstream": server.url})
    content = b'{"model": "secret", "model": "m"}'
    await front.client.post("/v1/embeddings", content=content, headers={"content-type": "application/json"})
    assert server.asked[0].body == b'{"model":"m"}'


async def test_a_model_has_another_name_there(faulty: StartFaulty, gateway: StartGateway) -> None:
    server = await faulty(odd)
    front = await gateway(
        {"upstream": server.url, "model": "theirs"},
        {"name": "mine", "upstream": server.url, "model": "theirs", "rewrite_answers": True},
    )
    assert (await front.chat()).content == ODD
    assert server.asked[0].json["model"] == "theirs"
    assert (await front.chat(model="mine")).content == ODD.replace(b"theirs", b"mine")
    assert front.meters[1].model == "mine"
    assert front.meters[1].prompt_tokens == 5


@pytest.mark.parametrize("told", ["theirs", "m", "theirs-2026-01-01", "/models/theirs.gguf"])
async def test_names_in_streams_change_when_asked(told: str, faulty: StartFaulty, gateway: StartGateway) -> None:
    data = b'data: {"model":"%s","choices":[]}\n\n'

    async def tells(asked: Asked) -> None:
        asked.begin_events()
        theirs = data % told.encode()
        await asked.chunk(theirs[:15])
        await asked.chunk(theirs[15:] + theirs)
        await asked.chunk(b"")

    server = await faulty(tells)
    front = await gateway({"upstream": server.url, "model": "theirs", "rewrite_answers": True})
    assert (await front.chat(stream=True)).content == data % b"m" + data % b"m"


async def test_usage_is_asked_for_and_shown_to_who_asked(faulty: StartFaulty, gateway: StartGateway) -> None:
    last = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'

    async def tells(asked: Asked) -> None:
        asked.begin_events()
        await asked.chunk(EVENTS[0] + last + EVENTS[2])
        await asked.chunk(b"")

    server = await faulty(tells)
    front = await gateway({"upstream": server.url})
    assert (await front.chat(stream=True, stream_options={"x": 1})).content == EVENTS[0] + EVENTS[2]
    assert server.asked[0].json["stream_options"] == {"x": 1, "include_usage": True}
    response = await front.chat(stream=True, stream_options={"include_usage": True})
    assert response.content == EVENTS[0] + last + EVENTS[2]
    for meter in front.meters:
        assert (meter.prompt_tokens, meter.completion_tokens) == (5, 2)


async def test_usage_is_not_asked_of_servers_that_do_not_know_it(faulty: StartFaulty, gateway: StartGateway) -> None:
    server = await faulty(streams)
    front = await gateway({"upstream": server.url, "ask_usage": False})
    await front.chat(stream=True)
    assert "stream_options" not in server.asked[0].json
    assert front.meters[0].completion_tokens == 1
    assert front.meters[0].prompt_tokens == 2  # an estimate of "Hello"


async def test_headers_that_end_here_do_not_pass(faulty: StartFaulty, gateway: StartGateway) -> None:
    async def tells_much(asked: Asked) -> None:
        more = (
            "set-cookie: a=b\r\nserver: x\r\nstrict-transport-security: x\r\nconnection: x-private\r\n"
            "x-private: 1\r\nx-public: 2\r\nx-request-id: theirs\r\nx-ratelimit-remaining-requests: 7\r\n"
        )
        asked.answer(more=more)

    server = await faulty(tells_much)
    front = await gateway({"upstream": server.url, "key": "sk-upstream"})
    response = await front.client.post(
        "/v1/chat/completions",
        json=CHAT,
        headers={
            "authorization": "Bearer sk-arriero",
            "x-api-key": "sk-arriero",
            "cookie": "a=b",
            "connection": "keep-alive, x-mine",
            "x-mine": "1",
            "x-forwarded-for": "10.0.0.1",
            "openai-organization": "another",
            "x-request-id": "req-7",
            "x-custom": "2",
        },
    )
    sent = server.asked[0].headers
    assert sent["authorization"] == "Bearer sk-upstream"
    assert "sk-arriero" not in str(sent)
    assert not sent.keys() & {"cookie", "connection", "x-mine", "x-forwarded-for", "openai-organization", "x-api-key"}
    assert (sent["x-request-id"], sent["x-custom"]) == ("req-7", "2")
    assert sent["accept-encoding"] == "identity"
    assert sent["host"] == f"127.0.0.1:{server.port}"
    got = response.headers
    assert not got.keys() & {"set-cookie", "server", "strict-transport-security", "x-private"}
    assert "x-ratelimit-remaining-requests" not in got
    assert (got["x-request-id"], got["x-upstream-request-id"], got["x-public"]) == ("req-7", "theirs", "2")


async def test_the_callers_key_is_shown_only_where_that_is_wanted(faulty: StartFaulty, gateway: StartGateway) -> None:
    server = await faulty(odd)
    front = await gateway({"upstream": server.url}, {"name": "theirs", "upstream": server.url, "forward_key": True})
    headers = {"authorization": "Bearer sk-mine", "openai-project": "p"}
    for model in ("m", "theirs"):
        await front.client.post("/v1/chat/completions", json=CHAT | {"model": model}, headers=headers)
    assert not server.asked[0].headers.keys() & {"authorization", "openai-project"}
    assert server.asked[1].headers["authorization"] == "Bearer sk-mine"
    assert server.asked[1].headers["openai-project"] == "p"


@pytest.mark.parametrize("status", [400, 401, 404, 418, 422, 429, 500, 503])
async def test_what_the_server_refuses_is_told_as_it_is(
    status: int, faulty: StartFaulty, gateway: StartGateway
) -> None:
    async def refuses(asked: Asked) -> None:
        asked.answer(b'{"error":"no"}', status, more="retry-after: 7\r\nx-ratelimit-limit-requests: 3\r\n")

    server = await faulty(refuses)
    front = await gateway({"upstream": server.url})
    response = await front.chat()
    assert (response.status_code, response.content) == (status, b'{"error":"no"}')
    assert response.headers["retry-after"] == "7"
    assert ("x-ratelimit-limit-requests" in response.headers) == (status == 429)
    assert front.meters[0].prompt_tokens == front.meters[0].completion_tokens == 0
    assert len(server.asked) == 1


async def hangs(asked: Asked) -> None:
    await asyncio.sleep(60)


async def drips_headers(asked: Asked) -> None:
    for each in "HTTP/1.1 200 OK\r\nx-a: " + 10_000 * "a":
        await asked.send(each)
        await asyncio.sleep(0.01)


async def resets(asked: Asked) -> None:
    asked.reset()


async def resets_amid_the_head(asked: Asked) -> None:
    await asked.send("HTTP/1.1 200 OK\r\ncontent-ty")
    await asyncio.sleep(0.01)
    asked.reset()


async def talks_nonsense(asked: Asked) -> None:
    await asked.send(b"\x00\x16SMTP?\r\n\r\n")


async def has_an_odd_status(asked: Asked) -> None:
    asked.answer(status=777)


async def has_headers_without_end(asked: Asked) -> None:
    await asked.send("HTTP/1.1 200 OK\r\n")
    for _ in range(100):
        await asked.send("x-a: " + "a" * 4000 + "\r\n")


async def redirects(asked: Asked) -> None:
    asked.answer(status=307, more="location: http://169.254.169.254/secret\r\n")


async def answers_html(asked: Asked) -> None:
    asked.answer(b"<html>Welcome</html>", kind="text/html")


async def resets_before_the_body(asked: Asked) -> None:
    await asked.send("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n")
    await asyncio.sleep(0.01)
    asked.reset()


async def resets_before_an_event(asked: Asked) -> None:
    asked.begin_events()
    await asyncio.sleep(0.01)
    asked.reset()


async def declares_much(asked: Asked) -> None:
    asked.write("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n")


async def switches_protocols(asked: Asked) -> None:
    asked.write("HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")


@pytest.mark.parametrize(
    ("behave", "expected"),
    [
        (hangs, (504, "upstream_timeout")),
        (drips_headers, (504, "upstream_timeout")),
        (resets, (502, "upstream_error")),
        (resets_amid_the_head, (502, "upstream_error")),
        (talks_nonsense, (502, "upstream_error")),
        (has_an_odd_status, (502, "upstream_error")),
        (has_headers_without_end, (502, "upstream_error")),
        (redirects, (502, "upstream_error")),
        (answers_html, (502, "upstream_error")),
        (resets_before_the_body, (502, "upstream_error")),
        (resets_before_an_event, (502, "upstream_error")),
        (declares_much, (502, "upstream_error")),
        (switches_protocols, (502, "upstream_error")),
    ],
)
async def test_an_answer_that_is_none_is_an_error_that_names_the_model_alone(
    behave: Behaviour, expected: Any, faulty: StartFaulty, gateway: StartGateway
) -> None:
    server = await faulty(behave)
    front = await gateway({"upstream": server.url, "key": "sk-secret", "first_byte_timeout": 0.2})
    response = await front.chat()
    assert error_of(response) == expected
    assert "'m'" in response.text
    assert "sk-secret" not in response.text
    assert "127.0.0.1" not in response.text
    assert "169.254" not in str(response.headers) + response.text
    assert front.meters[0].error is not None
    assert front.meters[0].prompt_tokens == 0
    assert front.upstreams[0].endpoints[0].num_outstanding == 0


async def test_nobody_there_is_an_error(nowhere: str, gateway: StartGateway) -> None:
    front = await gateway({"upstream": nowhere})
    assert error_of(await front.chat()) == (502, "upstream_error")


@pytest.mark.parametrize("total", [0.3, 60.0])
async def test_a_stream_that_stops_ends_with_an_error_event(
    total: float, faulty: StartFaulty, gateway: StartGateway
) -> None:
    async def stops(asked: Asked) -> None:
        asked.begin_events()
        await asked.chunk(EVENTS[0] + b"data: half an ev")
        await asyncio.sleep(60)

    server = await faulty(stops)
    limits = {"between_bytes_timeout": 0.3 if total == 60 else 60.0, "total_timeout": total}
    front = await gateway({"upstream": server.url, **limits})
    response = await front.chat(stream=True)
    first, second, end = response.content.split(b"\n\n")
    assert (first + b"\n\n", end) == (EVENTS[0], b"")
    assert json.loads(second.removeprefix(b"data: "))["error"]["code"] == "upstream_timeout"
    assert front.meters[0].error == "UpstreamTimeout"
    assert front.meters[0].completion_tokens == 1
    await asyncio.wait_for(server.left.wait(), 5)


async def test_a_stream_that_is_reset_ends_with_an_error_event(faulty: StartFaulty, gateway: StartGateway) -> None:
    async def resets_amid(asked: Asked) -> None:
        asked.begin_events()
        await asked.chunk(EVENTS[0])
        await asyncio.sleep(0.01)
        asked.reset()

    server = await faulty(resets_amid)
    front = await gateway({"upstream": server.url})
    content = (await front.chat(stream=True)).content
    assert content.startswith(EVENTS[0])
    assert b"upstream_error" in content
    assert b"[DONE]" not in content


@pytest.mark.parametrize("length", ["content-length: 2000000", "transfer-encoding: chunked"])
async def test_a_body_that_breaks_off_is_not_taken_for_whole(
    length: str, faulty: StartFaulty, gateway: StartGateway
) -> None:
    async def breaks_off(asked: Asked) -> None:
        await asked.send(f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{length}\r\n\r\n")
        await asked.chunk(b'{"a": "' + 200_000 * b"x")
        await asyncio.sleep(0.02)
        asked.reset()

    server = await faulty(breaks_off)
    front = await gateway({"upstream": server.url})
    with pytest.raises(httpx.RemoteProtocolError):
        await front.chat()


async def test_an_answer_without_end_is_cut(faulty: StartFaulty, gateway: StartGateway) -> None:
    async def goes_on(asked: Asked) -> None:
        await asked.send("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            await asked.chunk(b"x" * 2000)
            await asyncio.sleep(0)

    server = await faulty(goes_on)
    front = await gateway({"upstream": server.url, "answer_limit": "100KiB"})
    with pytest.raises(httpx.RemoteProtocolError):
        await front.chat()
    await asyncio.wait_for(server.left.wait(), 5)


async def test_a_client_that_leaves_before_the_answer_ends_it_there(faulty: StartFaulty, gateway: StartGateway) -> None:
    server = await faulty(hangs)
    front = await gateway({"upstream": server.url})
    asking = asyncio.create_task(front.chat())
    await until(lambda: bool(server.asked))
    asking.cancel()
    await asyncio.wait_for(server.left.wait(), 5)
    assert front.upstreams[0].endpoints[0].num_outstanding == 0
    assert front.upstreams[0].endpoints[0].circuit.state == "closed"


async def test_a_client_that_leaves_amid_a_stream_ends_it_there(faulty: StartFaulty, gateway: StartGateway) -> None:
    async def goes_on(asked: Asked) -> None:
        asked.begin_events()
        while True:
            await asked.chunk(EVENTS[0])
            await asyncio.sleep(0.01)

    server = await faulty(goes_on)
    front = await gateway({"upstream": server.url})
    async with front.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        await anext(response.aiter_raw())
    await asyncio.wait_for(server.left.wait(), 5)
    await until(lambda: front.upstreams[0].endpoints[0].num_outstanding == 0)
    assert front.meters[0].completion_tokens > 0
    assert front.meters[0].prompt_tokens > 0
    assert front.meters[0].error is None


async def test_a_slow_reader_holds_the_server_up(faulty: StartFaulty, gateway: StartGateway) -> None:
    sent = 0

    async def pours(asked: Asked) -> None:
        nonlocal sent
        asked.begin_events()
        while True:
            await asked.chunk(b"data: " + 100_000 * b"x" + b"\n\n")
            sent += 1
            await asyncio.sleep(0)

    server = await faulty(pours)
    front = await gateway({"upstream": server.url})
    async with front.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        await anext(response.aiter_raw(1))
        before = -1
        while sent != before:  # until everything that lies between is full
            before = sent
            await asyncio.sleep(0.3)
        assert sent < 400


async def test_a_caller_may_use_what_is_theirs(faulty: StartFaulty) -> None:
    async def lists(asked: Asked) -> None:
        asked.answer(b'{"data":[{"id":"a"}]}')

    server = await faulty(lists)
    names = ("m", "other/*")
    upstreams = [Upstream(UpstreamTable(name=name, upstream=server.url), {}) for name in names]  # type: ignore[arg-type]
    api = application(Pool([], upstreams=upstreams))

    async def as_somebody(scope: Any, receive: Any, send: Any) -> None:
        set_caller(scope, Caller(id="k", models=("m",)))
        await api(scope, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(as_somebody), base_url="http://x") as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        refused = await client.post("/v1/chat/completions", json=CHAT | {"model": "other/a"})
        assert error_of(refused) == (404, "model_not_found")
        assert (await client.get("/v1/models/m")).status_code == 200
        assert (await client.get("/v1/models/other/a")).status_code == 404
        assert [each["id"] for each in (await client.get("/v1/models")).json()["data"]] == ["m"]
    assert len(server.posts) == 1
    for each in upstreams:
        await each.close()


async def test_local_models_come_first(faulty: StartFaulty, serve: Any) -> None:
    served = await serve()
    server = await faulty(odd)
    pool = Pool([served.model], upstreams=[Upstream(UpstreamTable(name="*", upstream=server.url), {})])  # type: ignore[arg-type]
    assert pool.find_upstream("scripted") is None
    assert pool.find_upstream("other") is not None


async def test_a_request_that_comes_back_is_not_passed_on_again(faulty: StartFaulty, gateway: StartGateway) -> None:
    server = await faulty(odd)
    front, other = [await gateway({"upstream": server.url}) for _ in range(2)]
    await front.chat()
    via = {"via": f"1.0 proxy, {server.posts[-1].headers['via']}"}
    back = await front.client.post("/v1/chat/completions", json=CHAT, headers=via)
    assert error_of(back) == (508, "upstream_loop")
    assert len(server.posts) == 1
    assert (await other.client.post("/v1/chat/completions", json=CHAT, headers=via)).status_code != 508


async def test_what_is_asked_of_an_open_entry_has_one_name_in_the_accounts(
    faulty: StartFaulty, gateway: StartGateway
) -> None:
    going = asyncio.Event()

    async def slow(asked: Asked) -> None:
        await going.wait()
        asked.answer(ODD, status=404 if asked.json["model"] == "b" else 200)

    server = await faulty(slow)
    front = await gateway({"name": "all/*", "upstream": server.url})
    asking = [asyncio.create_task(front.chat(model=f"all/{name}")) for name in "ab"]
    await until(lambda: len(server.posts) == 2)
    assert {meter.model for meter in front.meters} == {""}
    going.set()
    await asyncio.gather(*asking)
    assert {meter.model: meter.first_token_at is None for meter in front.meters} == {"all/a": False, "all/*": True}
