"""Connections that are used again, and several servers under one name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from arriero.backends import upstream as upstream_module
from backends.conftest import Asked, Behaviour, Faulty, Gateway, until

StartFaulty = Callable[[Behaviour], Awaitable[Faulty]]
StartGateway = Callable[..., Awaitable[Gateway]]


async def well(asked: Asked) -> None:
    asked.answer(b'{"from":"well"}')


def answers(status: int, more: str = "") -> Behaviour:
    async def answer(asked: Asked) -> None:
        asked.answer(b'{"from":"ill"}', status, more=more)

    return answer


async def resets(asked: Asked) -> None:
    asked.reset()


async def test_connections_are_used_again(faulty: StartFaulty, gateway: StartGateway) -> None:
    server = await faulty(well)
    front = await gateway({"upstream": server.url})
    for _ in range(3):
        assert (await front.chat()).status_code == 200
    assert [each.connection for each in server.asked] == [0, 0, 0]


@pytest.mark.parametrize("more", ["connection: close\r\n", "keep-alive: timeout=1\r\n"])
async def test_connections_that_the_server_gives_up_are_not(
    more: str, faulty: StartFaulty, gateway: StartGateway
) -> None:
    server = await faulty(answers(200, more))
    front = await gateway({"upstream": server.url})
    for _ in range(2):
        assert (await front.chat()).status_code == 200
    assert [each.connection for each in server.asked] == [0, 1]


async def test_an_idle_connection_that_was_dropped_is_not_felt(faulty: StartFaulty, gateway: StartGateway) -> None:
    """Also where the server drops it at the moment in which the next request is on its way."""
    drops = False

    async def drops_idle(asked: Asked) -> None:
        if drops and asked.connection == 0:
            asked.reset()
        else:
            asked.answer()

    server = await faulty(drops_idle)
    front = await gateway({"upstream": server.url})
    assert (await front.chat()).status_code == 200
    drops = True
    assert (await front.chat()).status_code == 200
    assert [each.connection for each in server.asked] == [0, 0, 1]
    server.hang_up()
    await asyncio.sleep(0.01)
    assert (await front.chat()).status_code == 200
    assert server.asked[-1].connection == 2


@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", b"evil"])
async def test_what_follows_an_answer_is_nobodys(extra: bytes, faulty: StartFaulty, gateway: StartGateway) -> None:
    async def says_more(asked: Asked) -> None:
        asked.answer()
        asked.write(extra)

    server = await faulty(says_more)
    front = await gateway({"upstream": server.url})
    for _ in range(3):
        response = await front.chat()
        assert (response.status_code, response.content) == (200, b"{}")
    assert [each.connection for each in server.asked] == [0, 1, 2]


async def test_interim_answers_and_trailers_are_left_out(faulty: StartFaulty, gateway: StartGateway) -> None:
    async def says_much(asked: Asked) -> None:
        asked.write("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
        asked.write("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        asked.write("2\r\n{}\r\n0\r\nx-trailer: 1\r\n\r\n")

    server = await faulty(says_much)
    front = await gateway({"upstream": server.url})
    for _ in range(2):
        response = await front.chat()
        assert (response.status_code, response.content) == (200, b"{}")
        assert not response.headers.keys() & {"link", "x-trailer"}
    assert server.num_connections == 1


async def test_a_body_may_end_with_its_connection(faulty: StartFaulty, gateway: StartGateway) -> None:
    async def closes(asked: Asked) -> None:
        await asked.send(b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{}")
        asked.writer.close()

    server = await faulty(closes)
    front = await gateway({"upstream": server.url})
    assert (await front.chat()).content == b"{}"


@pytest.mark.parametrize("behave", [resets, answers(502), answers(503), answers(504), answers(429)])
async def test_another_server_answers_where_one_cannot(
    behave: Behaviour, faulty: StartFaulty, gateway: StartGateway
) -> None:
    ill, good = await faulty(behave), await faulty(well)
    front = await gateway({"upstream": [{"url": ill.url, "weight": 100}, {"url": good.url, "weight": 0.1}]})
    assert (await front.chat()).json() == {"from": "well"}
    assert (len(ill.asked), len(good.asked)) == (1, 1)


async def test_another_server_answers_where_one_is_not_there(
    nowhere: str, faulty: StartFaulty, gateway: StartGateway
) -> None:
    good = await faulty(well)
    front = await gateway({"upstream": [{"url": nowhere, "weight": 100}, good.url]})
    for _ in range(20):
        assert (await front.chat()).json() == {"from": "well"}
    assert front.upstreams[0].endpoints[0].circuit.state == "open"


@pytest.mark.parametrize("status", [400, 401, 404, 500])
async def test_no_other_server_is_asked_what_one_has_answered(
    status: int, faulty: StartFaulty, gateway: StartGateway
) -> None:
    ill, other = await faulty(answers(status)), await faulty(well)
    front = await gateway({"upstream": [{"url": ill.url, "weight": 100}, {"url": other.url, "weight": 0.1}]})
    assert (await front.chat()).status_code == status
    assert not other.asked


async def test_no_other_server_is_asked_once_an_answer_began(faulty: StartFaulty, gateway: StartGateway) -> None:
    async def breaks_off(asked: Asked) -> None:
        await asked.send("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n")
        await asyncio.sleep(0.01)
        asked.reset()

    ill, other = await faulty(breaks_off), await faulty(well)
    front = await gateway({"upstream": [{"url": ill.url, "weight": 100}, {"url": other.url, "weight": 0.1}]})
    assert (await front.chat()).status_code == 502
    assert not other.asked


async def test_where_nobody_can_the_last_refusal_is_told(faulty: StartFaulty, gateway: StartGateway) -> None:
    servers = [await faulty(answers(429, "retry-after: 3\r\n")) for _ in range(2)]
    front = await gateway({"upstream": [each.url for each in servers]})
    for _ in range(2):  # the second time both rest, and are asked all the same
        response = await front.chat()
        assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert [len(each.asked) for each in servers] == [2, 2]


@pytest.mark.parametrize("date", [False, True])
@pytest.mark.parametrize("status", [429, 503])
async def test_a_server_that_asks_for_a_rest_gets_it(
    status: int, date: bool, faulty: StartFaulty, gateway: StartGateway
) -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True) if date else "60"
    busy, other = await faulty(answers(status, f"retry-after: {when}\r\n")), await faulty(well)
    front = await gateway({"upstream": [{"url": busy.url, "weight": 100}, other.url]})
    for _ in range(3):
        assert (await front.chat()).json() == {"from": "well"}
    assert len(busy.asked) == 1
    assert front.upstreams[0].endpoints[0].circuit.state == "closed"


async def test_who_has_the_least_to_do_is_asked(faulty: StartFaulty, gateway: StartGateway) -> None:
    release = asyncio.Event()

    async def waits(asked: Asked) -> None:
        await release.wait()
        asked.answer()

    servers = [await faulty(waits) for _ in range(3)]
    tables = [{"url": each.url, "weight": weight} for each, weight in zip(servers, (1, 1, 2), strict=True)]
    front = await gateway({"upstream": tables})
    async with asyncio.TaskGroup() as asking:
        for number in range(8):
            asking.create_task(front.chat())
            await until(lambda number=number: sum(len(each.asked) for each in servers) > number)  # type: ignore[misc]
        assert [len(each.asked) for each in servers] == [2, 2, 4]
        release.set()
    assert all(each.num_outstanding == 0 for each in front.upstreams[0].endpoints)


async def test_a_server_that_fails_is_left_alone_until_it_is_alive(
    monkeypatch: pytest.MonkeyPatch, faulty: StartFaulty, gateway: StartGateway
) -> None:
    ill = True

    async def recovers(asked: Asked) -> None:
        if asked.line.startswith("GET /health"):
            asked.answer(status=404)
        elif ill:
            asked.answer(status=503)
        else:
            asked.answer()

    server = await faulty(recovers)
    front = await gateway({"upstream": server.url, "key": "sk-1"})
    circuit = front.upstreams[0].endpoints[0].circuit
    monkeypatch.setattr(circuit, "_range", 0.1)
    for _ in range(5):
        assert (await front.chat()).status_code == 503
    assert circuit.state == "open"
    response = await front.chat()
    assert response.json()["error"]["code"] == "overloaded"
    assert int(response.headers["retry-after"]) >= 1
    assert len(server.posts) == 5
    await until(lambda: len(server.asked) > 8)  # it is asked, and waited for longer each time
    assert {each.line.split()[1] for each in server.asked[5:]} == {"/health", "/v1/models"}
    assert {each.headers["authorization"] for each in server.asked} == {"Bearer sk-1"}
    ill = False
    await until(lambda: circuit.state == "half-open")
    assert (await front.chat()).status_code == 200
    assert circuit.state == "closed"


async def test_metrics_tell_how_the_servers_are(faulty: StartFaulty, gateway: StartGateway) -> None:
    ill, fine = await faulty(resets), await faulty(well)
    front = await gateway({"upstream": [{"url": ill.url, "weight": 1000}, fine.url, fine.url]})
    while len(ill.asked) < 5:
        assert (await front.chat()).status_code == 200
    told = (await front.client.get("/metrics")).text
    there = f'model="m",server="127.0.0.1:{ill.port}"'
    assert f"arriero_upstream_requests_total{{{there}}} 5.0" in told
    assert f"arriero_upstream_failures_total{{{there}}} 5.0" in told
    assert f"arriero_upstream_requests_running{{{there}}} 0.0" in told
    assert f'arriero_upstream_circuit{{{there},state="open"}} 1.0' in told
    for number in (2, 3):  # two addresses of one server
        assert f'{{model="m",server="127.0.0.1:{fine.port}#{number}",state="closed"}} 1.0' in told


async def test_a_client_that_leaves_does_not_end_the_trial(faulty: StartFaulty, gateway: StartGateway) -> None:
    async def hangs(asked: Asked) -> None:
        await asyncio.sleep(60)

    server = await faulty(hangs)
    front = await gateway({"upstream": server.url})
    circuit = front.upstreams[0].endpoints[0].circuit
    circuit.state = "half-open"
    asking = asyncio.create_task(front.chat())
    await until(lambda: bool(server.asked))
    assert not circuit.admits
    asking.cancel()
    await until(lambda: circuit.admits)


MODELS = b'{"object":"list","data":[{"id":"openai/a"},{"id":"openai/b"},{"id":"other/c"},{"id":7}]}'


async def lists(asked: Asked) -> None:
    asked.answer(MODELS)


async def ids(front: Gateway) -> list[str]:
    return [each["id"] for each in (await front.client.get("/v1/models")).json()["data"]]


async def test_models_are_listed_by_the_names_that_callers_use(faulty: StartFaulty, gateway: StartGateway) -> None:
    server = await faulty(lists)
    front = await gateway(
        {"name": "openai/*", "upstream": server.url},
        {"name": "router/*", "upstream": server.url, "model": "openai/*"},
        {"name": "fixed", "upstream": server.url},
    )
    assert await ids(front) == [
        "fixed",
        *("openai/openai/a", "openai/openai/b", "openai/other/c"),
        *("router/a", "router/b"),
    ]
    await ids(front)
    assert len(server.asked) == 2  # remembered, and never asked where the name is fixed
    one = await front.client.get("/v1/models/router/a")
    assert (one.status_code, one.json()["id"]) == (200, "router/a")
    assert (await front.client.get("/v1/models/nobody")).status_code == 404
    await front.chat(model="router/a")
    assert server.asked[-1].json["model"] == "openai/a"


async def test_the_nearest_name_answers(faulty: StartFaulty, gateway: StartGateway) -> None:
    servers = [await faulty(well) for _ in range(3)]
    urls = [each.url for each in servers]
    front = await gateway(
        {"name": "*", "upstream": urls[0]}, {"name": "a/*", "upstream": urls[1]}, {"name": "a/b", "upstream": urls[2]}
    )
    for name in ("a/b", "a/c", "c", "a/"):
        assert (await front.chat(model=name)).status_code == 200
    assert [[each.json["model"] for each in server.asked] for server in servers] == [["c", "a/"], ["c"], ["a/b"]]


async def test_models_of_a_server_that_hangs_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, faulty: StartFaulty, gateway: StartGateway
) -> None:
    async def hangs(asked: Asked) -> None:
        await asyncio.sleep(60)

    async def talks_nonsense(asked: Asked) -> None:
        asked.answer(b'{"data": [3]}')

    monkeypatch.setattr(upstream_module, "_CHECK_SECONDS", 0.2)
    front = await gateway(
        {"name": "hangs/*", "upstream": (await faulty(hangs)).url},
        {"name": "odd/*", "upstream": (await faulty(talks_nonsense)).url},
        {"name": "two/*", "upstream": [(await faulty(hangs)).url, (await faulty(lists)).url]},
    )
    assert await ids(front) == ["two/openai/a", "two/openai/b", "two/other/c"]


async def test_names_of_an_open_entry_count_once_a_server_knows_them(
    faulty: StartFaulty, gateway: StartGateway
) -> None:
    async def knows_one(asked: Asked) -> None:
        asked.answer(status=200 if asked.json["model"] == "known" else 404)

    front = await gateway({"name": "*", "upstream": (await faulty(knows_one)).url})
    await front.chat(model="known")
    await front.chat(model="invented")
    assert [meter.model for meter in front.meters] == ["known", "*"]


def table(**values: Any) -> Any:
    from arriero.upstream_tables import UpstreamTable

    return UpstreamTable(**{"name": "m", "upstream": "http://a/v1"} | values)


def test_a_key_comes_from_the_environment_or_is_missed() -> None:
    from arriero.backends.upstream import Outgoing, Upstream
    from arriero.errors import ConfigError

    outgoing = Outgoing(path=b"/v1/x", headers=b"", body=b"")
    one = Upstream(table(key_env="A_KEY"), {"A_KEY": " sk-9\n"})
    assert b"\r\nauthorization: Bearer sk-9\r\n" in one.endpoints[0].request(outgoing)
    both = Upstream(table(key="sk-8", upstream=[{"url": "http://a/v1", "key": "sk-7"}, "http://b/v1"]), {})
    assert b"sk-7" in both.endpoints[0].request(outgoing)
    assert b"sk-8" in both.endpoints[1].request(outgoing)
    for value in ("", "two words", "täst"):
        with pytest.raises(ConfigError, match=r"'m'.*A_KEY"):
            Upstream(table(key_env="A_KEY"), {"A_KEY": value})
