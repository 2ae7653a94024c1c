"""A key with one request beside a key with fifty, on a model with two slots in a process of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from abuse.conftest import LONG, SLOTS, House, chat

TOKENS = 90
ROUNDS = 5 if LONG else 2


@dataclass
class Span:
    """When a request was sent, when its answer began and when it ended, in seconds."""

    sent: float
    began: float
    ended: float


async def ask(client: httpx.AsyncClient) -> Span:
    sent, began = time.monotonic(), 0.0
    body = chat("child", stream=True, max_tokens=TOKENS, ignore_eos=True, temperature=0)
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        async for piece in answer.aiter_raw():
            if b'"content":"' in piece.replace(b'"content":""', b""):
                began = began or time.monotonic()
    return Span(sent, began or time.monotonic(), time.monotonic())


async def test_one_request_waits_for_at_most_one_of_fifty(house: House, figures: Callable[[str], None]) -> None:
    async with house.client("many") as many, house.client("one") as one:
        crowd = [asyncio.create_task(ask(many)) for _ in range(50)]
        await house.until("arriero_requests_waiting", lambda waiting: waiting >= 25)
        ones = [await ask(one) for _ in range(ROUNDS)]
        spans = await asyncio.gather(*crowd)
    longest = max(span.ended - span.began for span in spans)
    waits = [span.began - span.sent for span in ones]
    ahead = [sum(span.sent < each.began < span.began for each in spans) for span in ones]
    figures(
        f"fairness: {len(spans)} requests of one key took up to {longest:.3f} s each on {SLOTS} slots, and waited for "
        f"up to {max(span.began - span.sent for span in spans):.3f} s; those of another key, sent meanwhile one after "
        f"the other, waited for {', '.join(f'{wait:.3f}' for wait in waits)} s, while so many others began: {ahead}"
    )
    # Those whose turn came while the request was on its way, and as its answer was.
    assert max(ahead) <= 2 * SLOTS
    if LONG:
        assert max(waits) <= longest * 1.25
