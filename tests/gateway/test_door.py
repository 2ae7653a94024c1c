"""Nobody comes in without a key that is good for what they ask, whatever they try."""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arriero.gateway.keyring import ADMIN_ROUTES, EVERYBODYS, Keyring
from arriero.store import keys
from arriero.store.database import open_database
from endpoints import POSTED
from gateway.own_routes import OWN_ROUTES

WORD = "sk-arriero-0123456789ab-" + "x" * 43


async def test_every_route_is_closed_to_who_has_no_good_key(guarded: Any, figures: Callable[[str], None]) -> None:
    guarded.key("expired", expires=int(time.time()) - 1)
    revoked = guarded.key("revoked")
    guarded.write(lambda connection: keys.revoke(connection, revoked))
    guarded.key("elsewhere", endpoints=("nowhere",))
    rotated = guarded.key("rotated")
    guarded.write(lambda connection: keys.rotate(connection, rotated))
    guarded.texts["unknown"] = WORD
    routes = [*guarded.routes(), *OWN_ROUTES, ("GET", "/no/such/path"), ("DELETE", "/v1/models"), ("PATCH", "//")]
    assert len(routes) > 15
    for method, path in routes:
        for name in (None, "expired", "revoked", "rotated", "unknown"):
            answer = await guarded.ask(name, method, path)
            assert answer.status_code == 401, (method, path, name)
            assert method == "HEAD" or answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        first = path.strip("/").removeprefix("v1/").partition("/")[0]
        if first in EVERYBODYS and method in ("GET", "HEAD"):
            continue
        answer = await guarded.ask("elsewhere", method, path)
        assert answer.status_code == 403, (method, path)
        assert method == "HEAD" or answer.json()["error"]["code"] == "insufficient_permissions"
        answer = await guarded.ask("alice", method, path)
        assert (answer.status_code == 403) == (first in ADMIN_ROUTES), (method, path)
    figures(f"{len(routes)} routes: 401 for no, expired, revoked, rotated and unknown keys, 403 for those out of scope")


async def test_liveness_asks_for_no_key(guarded: Any) -> None:
    answer = await guarded.client.get("/health/live")
    assert answer.status_code not in (401, 403)
    for path in ("/health/live/", "//health/live", "/health/live/..", "/health", "/health/ready", "/Health/Live"):
        assert (await guarded.client.get(f"http://arriero{path}")).status_code == 401, path


async def test_without_keys_everybody_comes_in_until_there_is_one(guard: Any) -> None:
    server = await guard()
    assert (await server.client.get("/v1/models")).status_code == 200
    key = server.key("alice")
    assert (await server.client.get("/v1/models")).status_code == 401
    assert (await server.ask("alice")).status_code == 200
    server.write(lambda connection: keys.revoke(connection, key))
    assert (await server.ask("alice")).status_code == 401
    assert (await server.client.get("/v1/models")).status_code == 401
    server.write(lambda connection: connection.execute("DELETE FROM keys"))
    assert server.ledger.keys == ()
    assert (await server.client.get("/v1/models")).status_code == 401, "a lost store must not open the door"


async def test_a_closed_server_has_nobody_come_in_before_there_is_a_key(guard: Any) -> None:
    server = await guard(closed=True)
    assert (await server.client.get("/v1/models")).status_code == 401
    server.key("alice")
    assert (await server.ask("alice")).status_code == 200


async def test_no_auth_asks_nobody_and_makes_nobody_an_admin(guard: Any) -> None:
    server = await guard(no_auth=True)
    server.key("alice")
    assert (await server.client.get("/v1/models")).status_code == 200
    assert (await server.client.get("/metrics")).status_code == 200
    assert (await server.client.post("/admin/models/x/load")).status_code == 403
    assert (await (await guard()).client.post("/admin/models/x/load")).status_code != 403


async def test_the_key_of_the_settings_may_do_everything(guard: Any) -> None:
    server = await guard(api_key="a simple key")
    server.texts["static"] = "a simple key"
    assert (await server.client.get("/v1/models")).status_code == 401
    assert (await server.ask("static")).status_code == 200
    assert (await server.chat("static")).status_code == 200
    assert (await server.ask("static", path="/v1/usage")).json()["data"][0]["key"] == "static"
    assert "a simple key" not in repr(server.served.settings)


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Bearer {}")],
        [("Authorization", "bearer   {}  ")],
        [("x-api-key", "{}")],
        [("api-key", " {}")],
        [("authorization", "Basic dXNlcjpwYXNz"), ("x-api-key", "{}")],
    ],
)
async def test_headers_that_bring_a_key(guarded: Any, headers: list[tuple[str, str]]) -> None:
    given = [(name, value.format(guarded.texts["alice"])) for name, value in headers]
    assert (await guarded.client.get("/v1/models", headers=given)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "{}")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer{}")],
        [("authorization", "Token {}")],
        [("authorization", "Bearer {} {}")],
        [("authorization", "Bearer {},")],
        [("authorization", "Bearer {}"), ("authorization", "Bearer {}")],
        [("x-api-key", "{}"), ("x-api-key", "{}")],
        [("authorization", "Bearer wrong"), ("x-api-key", "{}")],
        [("x-api-key", "")],
        [("authorization", b"Bearer \xff\xfe\x00")],
        [("authorization", "Bearer {}" + "x" * 60_000)],
        [("authorization", "Bearer " + "x" * 60_000)],
        [("authorization", "")],
    ],
)
async def test_headers_that_bring_none(guarded: Any, headers: list[tuple[str, Any]]) -> None:
    text = guarded.texts["alice"]
    given = [(name, value.replace("{}", text) if isinstance(value, str) else value) for name, value in headers]
    answer = await guarded.client.get("/v1/models", headers=given)
    assert answer.status_code == 401
    assert text not in answer.text


async def test_a_key_that_is_almost_right_is_wrong(guarded: Any) -> None:
    text = guarded.texts["alice"]
    for wrong in (text[:-1], text + "a", text[:-1] + ("a" if text[-1] != "a" else "b"), text.upper(), text[::-1]):
        guarded.texts["wrong"] = wrong
        assert (await guarded.ask("wrong")).status_code == 401


@settings(max_examples=200, deadline=None)
@given(text=st.binary(max_size=200))
def test_whatever_is_no_key_goes_the_same_way(text: bytes) -> None:
    ring = Keyring("static")
    key, right = keys.new_key("alice")
    ring.take((key,))
    assert ring.identify([(b"x-api-key", right.encode())]) == key
    with pytest.raises(Exception, match="Incorrect API key") as caught:
        ring.identify([(b"x-api-key", text)])
    assert type(caught.value).__name__ == "InvalidKey"


def test_wrong_keys_are_compared_like_right_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """By construction: one hash and two comparisons of as many bytes, whether an id is known or not."""
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "arriero.gateway.keyring.hmac.compare_digest", lambda a, b: bool(seen.append((len(a), len(b)))) or a == b
    )
    ring = Keyring()
    key, right = keys.new_key("alice")
    ring.take((key,))
    ring.identify([(b"x-api-key", right.encode())])
    expected, seen[:] = seen.copy(), []
    for wrong in (right[:-1] + "?", "sk-arriero-000000000000-x", "x", "x" * 10_000):
        with pytest.raises(Exception, match="Incorrect"):
            ring.identify([(b"x-api-key", wrong.encode())])
        assert seen == expected == [(32, 32), (32, 32)]
        seen.clear()


async def test_scopes(guarded: Any) -> None:
    guarded.key("chatter", endpoints=("chat/*",))
    guarded.key("scraper", endpoints=("metrics",))
    guarded.key("balancer", endpoints=("health/ready",))
    guarded.key("boss", admin=True)
    guarded.key("stranger", models=("other-*",))
    embedding = {"json": {"model": guarded.model, "input": "Hello"}}
    assert (await guarded.chat("chatter")).status_code == 200
    assert (await guarded.ask("chatter", "POST", "/v1/embeddings", **embedding)).status_code == 403
    assert (await guarded.ask("chatter", path="/metrics")).status_code == 403
    assert (await guarded.ask("scraper", path="/metrics")).status_code != 403
    assert (await guarded.ask("scraper", path="/admin/x")).status_code == 403
    assert (await guarded.ask("balancer", path="/health/ready")).status_code == 200
    assert (await guarded.ask("balancer", path="/health")).status_code == 403
    assert (await guarded.ask("boss", path="/admin/x")).status_code == 404
    assert (await guarded.chat("scraper")).status_code == 403
    for path in ("/admin", "//admin/x", "/v1/admin/x", "/admin/%2e%2e/v1/models"):
        assert (await guarded.ask("alice", path=f"http://arriero{path}")).status_code == 403, path


async def test_models_that_a_key_may_not_use_are_not_there(guarded: Any) -> None:
    guarded.key("stranger", models=("other-*", "another"))
    guarded.key("friend", models=(guarded.model[:3] + "*",))
    assert [each["id"] for each in (await guarded.ask("friend")).json()["data"]] == [guarded.model]
    assert (await guarded.ask("stranger")).json()["data"] == []
    missing = (await guarded.chat("stranger", model="no-such-model")).json()["error"]
    posted = {path for method, path in guarded.routes() if method == "POST" and not path.startswith("/admin/")}
    assert POSTED.keys() == posted, "a new endpoint must be tried here"
    for path, body in POSTED.items():
        answer = await guarded.ask("stranger", "POST", path, json={"model": guarded.model, **body})
        assert answer.status_code == 404, path
        assert answer.json()["error"] == missing | {
            "message": missing["message"].replace("no-such-model", guarded.model)
        }
        assert (await guarded.ask("friend", "POST", path, json={"model": guarded.model, **body})).status_code == 200
    for model in (guarded.model, "no-such-model"):
        assert (await guarded.ask("stranger", path=f"/v1/models/{model}")).status_code == 404
    assert (await guarded.ask("friend", path=f"/v1/models/{guarded.model}")).status_code == 200


async def test_any_name_is_no_way_around_a_scope(guard: Any) -> None:
    server = await guard(profile="alpaca")
    server.key("stranger", models=("other-*",))
    server.key("friend", models=(server.model,))
    assert (await server.chat("stranger", model="other-name")).status_code == 404
    assert (await server.chat("friend", model="other-name")).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "a\r\nx-evil: 1",
        "a\x00b",
        "%0d%0aset-cookie:x",
        "x" * 100_000,
        "{model}",
    ],
)
async def test_names_of_models_lead_nowhere(guarded: Any, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    answer = await guarded.chat("alice", model=name)
    assert answer.status_code == 404
    assert not {"x-evil", "set-cookie"} & set(answer.headers)
    assert not any("\n" in record.getMessage() for record in caplog.records if record.name.startswith("arriero"))
    path = "/v1/models/" + re.sub(r"[^\w./%-]", "_", name)[:1000]
    answer = await guarded.ask("alice", path=path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"


async def test_no_key_is_in_logs_answers_or_usage(guarded: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    text, wrong = guarded.texts["alice"], WORD
    guarded.texts["wrong"] = wrong
    guarded.texts["split"] = text.replace("-", "\t", 1)
    answers = [
        await guarded.chat("alice"),
        await guarded.chat("alice", model=text),
        await guarded.chat("alice", n="x"),
        await guarded.ask("wrong"),
        await guarded.ask("split"),
        await guarded.ask("alice", path="/v1/usage"),
        await guarded.ask("alice", path="/metrics"),
        await guarded.ask("alice", path="/health"),
    ]
    secret = text.rpartition("-")[2] if text.count("-") == 3 else text[24:]
    for answer in answers:
        if answer is not answers[1]:  # who says a key where a model is named reads it in the answer
            assert secret not in answer.text
        assert secret not in str(answer.headers)
        assert wrong not in answer.text
    logged = "".join(
        f"{record.getMessage()} {record.__dict__}" for record in caplog.records if "httpx" not in record.name
    )
    assert secret not in logged
    assert secret not in repr(guarded.ledger.report())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.text(st.characters(codec="latin-1"), max_size=30), method=st.sampled_from(["GET", "POST", "PUT", "OPTIONS"])
)
async def test_strange_paths_are_closed(guarded: Any, path: str, method: str) -> None:
    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": method, "path": "/" + path, "headers": [], "query_string": b""}
    await guarded.app(scope, receive, send)
    assert sent[0]["status"] == 401


async def test_what_is_not_http_does_not_come_in(guarded: Any) -> None:
    async def nothing(*_: Any) -> Any:
        raise AssertionError("it was answered")

    with pytest.raises(RuntimeError):
        await guarded.app({"type": "websocket", "path": "/v1/models", "headers": []}, nothing, nothing)


async def test_changed_keys_are_noticed_by_a_running_server(guarded: Any) -> None:
    guarded.ledger.start()
    key, guarded.texts["bob"] = keys.new_key("bob")

    async def until(status: int) -> None:
        async with asyncio.timeout(10):
            while (await guarded.ask("bob")).status_code != status:  # noqa: ASYNC110  # nobody announces it
                await asyncio.sleep(0.02)

    with closing(open_database(guarded.path)) as connection:
        keys.insert(connection, key)
        await until(200)
        keys.revoke(connection, key)
        await until(401)
