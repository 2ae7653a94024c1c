"""A key has what it may have, and is told when there is more."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arriero.gateway import limits
from arriero.gateway.limits import Bucket, duration
from clock import Clock


@pytest.fixture
async def server(guard: Any, clock: Clock) -> Any:
    started = await guard(clock=clock)
    started.door()._clock = clock
    return started


async def test_requests_per_minute(server: Any, clock: Clock) -> None:
    server.key("alice", requests_per_minute=3)
    server.key("bob")
    remaining = []
    for _ in range(3):
        answer = await server.ask("alice")
        remaining.append(answer.headers["x-ratelimit-remaining-requests"])
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert "x-ratelimit-limit-tokens" not in answer.headers
    assert remaining == ["2", "1", "0"]
    assert answer.headers["x-ratelimit-reset-requests"] == "1m0s"
    refused = await server.ask("alice")
    assert refused.status_code == 429
    assert refused.json()["error"] == {
        "message": "Rate limit reached for requests per min: Limit 3. Please try again in 20s.",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert refused.headers["retry-after"] == "20"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert (await server.ask("bob")).status_code == 200
    clock.now += 20
    assert (await server.ask("alice")).status_code == 200
    assert (await server.ask("alice")).status_code == 429


async def test_tokens_per_minute(server: Any, clock: Clock) -> None:
    server.key("alice", tokens_per_minute=60)
    first = await server.chat("alice", "word " * 20, max_tokens=30)
    used = first.json()["usage"]["total_tokens"]
    assert used > 60
    assert first.headers["x-ratelimit-remaining-tokens"] == "0"
    refused = await server.chat("alice")
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")
    assert refused.headers["retry-after"] == str(used - 60 + 1)
    assert (await server.ask("alice")).status_code == 200, "reading uses no tokens"
    clock.now += used - 60 + 1
    assert (await server.chat("alice", max_tokens=1)).status_code == 200


async def test_tokens_of_running_answers_count(guard: Any) -> None:
    server = await guard(pace=200)
    server.key("alice", tokens_per_minute=500)
    running = asyncio.create_task(server.chat("alice", "word " * 400, max_tokens=500))
    await server.served.until(lambda stats: stats.generated_tokens > 2)
    assert (await server.chat("alice")).status_code == 429
    running.cancel()


async def test_requests_at_the_same_time(guard: Any) -> None:
    server = await guard(pace=50)
    server.key("alice", concurrent=2)
    running = [asyncio.create_task(server.chat("alice", "some words")) for _ in range(2)]
    await server.served.until(lambda stats: stats.running == 2)
    refused = await server.chat("alice")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    running[0].cancel()
    await server.served.until(lambda stats: stats.running == 1)
    assert (await server.chat("alice", max_tokens=1)).status_code == 200
    assert (await running[1]).status_code == 200


@pytest.mark.parametrize(("period", "wait"), [("day", 86_400), ("month", 4 * 86_400)])
async def test_budgets_are_spent_and_come_back(server: Any, clock: Clock, period: str, wait: float) -> None:
    server.key("alice", budget=20, budget_period=period)
    assert (await server.chat("alice", "some words that are more than twenty tokens")).status_code == 200
    refused = await server.chat("alice")
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == refused.json()["error"]["type"] == "insufficient_quota"
    assert refused.headers["x-should-retry"] == "false"
    assert int(refused.headers["retry-after"]) >= 1
    assert (await server.ask("alice", path="/v1/usage")).status_code == 200
    clock.now += wait
    assert (await server.chat("alice")).status_code == 200


async def test_changed_limits_count_from_where_they_were(server: Any) -> None:
    server.key("alice", requests_per_minute=2, tokens_per_minute=1000)
    for _ in range(2):
        await server.chat("alice")
    assert (await server.chat("alice")).status_code == 429
    server.write(lambda connection: connection.execute("UPDATE keys SET requests_per_minute = 5"))
    answer = await server.chat("alice")
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-remaining-requests"] == "4"
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 1000


async def test_refused_requests_cost_no_tokens_and_are_counted(server: Any) -> None:
    server.key("alice", tokens_per_minute=1000, requests_per_minute=2)
    wrong = await server.chat("alice", max_tokens=10**9)
    assert wrong.status_code == 400
    assert wrong.headers["x-ratelimit-remaining-tokens"] == "1000"
    await server.chat("alice", model="nothing")
    assert (await server.chat("alice")).status_code == 429
    server.write(lambda connection: connection.execute("UPDATE keys SET requests_per_minute = NULL"))
    rows = (await server.ask("alice", path="/v1/usage")).json()["data"]
    assert [(row["endpoint"], row["model"], row["requests"], row["errors"]) for row in rows] == [
        ("", "", 1, 1),
        ("/v1/chat/completions", "", 1, 1),
        ("/v1/chat/completions", server.model, 1, 1),
    ]
    assert sum(row["total_tokens"] for row in rows) == 0


@given(st.integers(1, 10_000), st.lists(st.tuples(st.floats(0, 100), st.integers(0, 5000)), max_size=30))
def test_a_bucket_gives_no_more_than_it_fills(per_minute: int, uses: list[tuple[float, int]]) -> None:
    bucket, now, taken, wasted = Bucket(per_minute, 0.0), 0.0, 0.0, 0.0
    for wait, amount in uses:
        now += wait
        if bucket.level(now) > 0:
            bucket.take(amount, now)
            taken += amount
            assert bucket.level(now) <= per_minute
    overdraft = max(0.0, -bucket.level(now))
    assert taken <= per_minute + per_minute * now / 60 + overdraft + wasted + 1e-6
    wait = bucket.seconds_until(1, now)
    assert bucket.level(now + wait) >= 1 - 1e-6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0171, "18ms"), (1, "1s"), (1.5, "1.5s"), (59.9996, "1m0s"), (60, "1m0s"), (365.2, "6m5s")],
)
def test_durations_are_written_like_the_references(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_period_ends_after_now() -> None:
    assert 0 < limits._seconds_left("day") <= 86_400
    assert 0 < limits._seconds_left("month") <= 31 * 86_400
