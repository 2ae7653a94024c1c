"""`GET /v1/usage` tells everybody their own usage, and admins all."""

import asyncio
import json
from typing import Any

import pytest

from arriero.gateway.description import MODELS, PATHS
from arriero.gateway.usage import _PARAMETERS


async def test_own_usage_and_everybodys(guarded: Any) -> None:
    boss, bob = guarded.key("boss", admin=True), guarded.key("bob")
    usage = (await guarded.chat("alice")).json()["usage"]
    await guarded.chat("bob", stream=True)
    own = (await guarded.ask("alice", path="/v1/usage")).json()
    assert own["total"] == {name: value for name, value in own["data"][0].items() if name in own["total"]}
    row = own["data"][0]
    assert (row["endpoint"], row["model"]) == ("/v1/chat/completions", guarded.model)
    assert (row["requests"], row["errors"]) == (1, 0)
    assert {name: row[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")} == {
        name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    }
    everything = (await guarded.ask("boss", path="/v1/usage")).json()
    assert everything["total"]["requests"] == 2
    assert {row["key"] for row in everything["data"]} == {row["key"], bob.id}
    only = (await guarded.ask("boss", path=f"/v1/usage?key={bob.id}&model={guarded.model}&since={row['day']}")).json()
    assert [row["key"] for row in only["data"]] == [bob.id]
    assert (await guarded.ask("boss", path=f"/v1/usage?key={boss.id}")).json()["data"] == []
    assert (await guarded.ask("alice", path=f"/v1/usage?key={bob.id}")).status_code == 403


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("since=yesterday", "since"),
        ("until=2026-02-30", "until"),
        ("day=2026-01-01", "day"),
        ("model=a&model=b", "model"),
    ],
)
async def test_wrong_filters_are_named(guarded: Any, query: str, param: str) -> None:
    answer = await guarded.ask("alice", path=f"/v1/usage?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_only_reading_is_allowed(guarded: Any) -> None:
    assert (await guarded.ask("alice", "POST", "/v1/usage")).status_code == 405
    assert (await guarded.ask("alice", "HEAD", "/v1/usage")).content == b""


async def test_a_stream_that_is_broken_off_is_written_down_exactly(guard: Any) -> None:
    server = await guard(pace=200)
    alice = server.key("alice")
    body = {"model": server.model, "prompt": "word " * 200, "stream": True, "max_tokens": 300}
    enough, asked, chunks = asyncio.Event(), False, 0

    async def receive() -> Any:
        nonlocal asked
        if asked:
            await enough.wait()
            return {"type": "http.disconnect"}
        asked = True
        return {"type": "http.request", "body": json.dumps(body).encode()}

    async def send(message: Any) -> None:
        nonlocal chunks
        chunks += message.get("body", b"").count(b"data: ")
        if chunks >= 5:
            enough.set()

    headers = [(b"content-type", b"application/json"), (b"x-api-key", server.texts["alice"].encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
    await server.app(scope, receive, send)
    ((place, amounts),) = server.ledger.report()
    assert (place.key, place.model, place.endpoint) == (alice.id, server.model, "/v1/completions")
    assert (amounts.requests, amounts.errors) == (1, 0)
    assert chunks <= amounts.completion_tokens <= server.served.model.engine.stats().generated_tokens < 200
    assert amounts.prompt_tokens == server.served.model.engine.stats().prompt_tokens


async def test_an_answer_waits_for_no_store(guarded: Any) -> None:
    with guarded.ledger._writing:  # as while a locked file is waited for
        assert (await asyncio.wait_for(guarded.chat("alice"), 10)).status_code == 200


async def test_usage_without_keys_belongs_to_nobody(guard: Any) -> None:
    server = await guard()
    await server.client.get("/v1/models")
    body = {"model": server.model, "prompt": "Hello"}
    await server.client.post("/v1/completions", json=body)
    rows = (await server.client.get("/v1/usage")).json()["data"]
    assert [(row["key"], row["endpoint"]) for row in rows] == [("", "/v1/completions")]


async def test_the_gateway_s_answers_are_as_the_description_says(guarded: Any) -> None:
    guarded.key("boss", admin=True)
    await guarded.chat("alice")
    document = (await guarded.ask("boss", path="/openapi.json")).json()
    models = {model.__name__: model for model in MODELS}
    for path, item in PATHS.items():
        assert document["paths"][path] == item
        answer = await guarded.ask("boss", path=path)
        told = item["get"]["responses"][str(answer.status_code)]["content"]
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind in told
        if kind == "application/json":
            model = models[told[kind]["schema"]["$ref"].rpartition("/")[2]]
            assert model.model_validate(answer.json()).model_dump(mode="json", exclude_unset=True) == answer.json()
    assert document["security"] == [{"key": []}, {}]
    assert {each["name"] for each in PATHS["/v1/usage"]["get"]["parameters"]} == set(_PARAMETERS)
