"""An Arriero in front of another: whoever asks cannot tell them apart."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest

from backends.conftest import Gateway, until

StartGateway = Callable[..., Awaitable[Gateway]]
MESSAGES: Any = [{"role": "user", "content": "Tell me a joke. 🦙"}]


@pytest.fixture
async def pair(go_live: Callable[..., Any], gateway: StartGateway) -> tuple[Any, Gateway]:
    """The one behind, and the one in front."""
    live = go_live(slots=4, max_queue=0)
    return live, await gateway({"name": "scripted", "upstream": live.url})


def plain(text: str) -> str:
    """Without what differs from one answer to the next."""
    return re.sub(r'chatcmpl-\w+|cmpl-\w+|"created":\d+', "", text)


@pytest.mark.parametrize("options", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "n": 2, "logprobs": True}),
        ("/v1/completions", {"prompt": ["a", "b"], "echo": True}),
    ],
)
async def test_answers_are_the_same(path: str, body: Any, options: Any, pair: tuple[Any, Gateway]) -> None:
    live, front = pair
    wanted = {"model": "scripted", "seed": 1, **body, **options}
    there = await front.client.post(live.url + path, json=wanted)
    here = await front.client.post(path, json=wanted)
    assert there.status_code == here.status_code == 200
    if not options:
        assert plain(here.text) == plain(there.text)
    usage = await front.client.post(live.url + path, json={"model": "scripted", "seed": 1, **body})
    told = usage.json()["usage"]
    assert front.meters[-1].prompt_tokens == told["prompt_tokens"]
    assert front.meters[-1].completion_tokens == told["completion_tokens"]
    assert ("usage" in here.text) == ("usage" in there.text)
    assert here.headers["content-type"] == there.headers["content-type"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["a", "b"]}),
        ("/v1/rerank", {"query": "a", "documents": ["b", "c"]}),
        ("/v1/score", {"text_1": "a", "text_2": "b"}),
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [65]}),
        ("/v1/chat/completions", {"messages": MESSAGES, "temperature": 9}),
        ("/v1/chat/completions", {"messages": "?"}),
    ],
)
async def test_other_answers_and_refusals_are_the_same(path: str, body: Any, pair: tuple[Any, Gateway]) -> None:
    live, front = pair
    there = await front.client.post(live.url + path, json={"model": "scripted", **body})
    here = await front.post(path, **{"model": "scripted", **body})
    assert here.status_code == there.status_code
    assert plain(re.sub(r'"id":"[\w-]+"', "", here.text)) == plain(re.sub(r'"id":"[\w-]+"', "", there.text))
    told = there.json().get("usage", {})
    if path.startswith("/v1"):
        assert front.meters[-1].prompt_tokens == told.get("prompt_tokens", told.get("total_tokens", 0))


async def test_openais_client_streams_through_both(pair: tuple[Any, Gateway]) -> None:
    _, front = pair
    client = openai.AsyncOpenAI(base_url=f"{front.client.base_url}/v1", api_key="EMPTY", max_retries=0)
    async with client:
        stream = await client.chat.completions.create(model="scripted", messages=MESSAGES, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == MESSAGES[0]["content"]
        assert [model.id async for model in client.models.list()] == ["scripted"]
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="other", messages=MESSAGES)


async def test_leaving_frees_the_slot_behind(go_live: Callable[..., Any], gateway: StartGateway) -> None:
    live = go_live(pace=20)
    front = await gateway({"name": "scripted", "upstream": live.url})
    body = {"model": "scripted", "messages": [{"role": "user", "content": "x" * 1000}], "stream": True}
    async with front.client.stream("POST", "/v1/chat/completions", json=body) as response:
        await anext(response.aiter_raw())
        await until(lambda: live.model.engine.stats().running == 1)
    await live.until(lambda stats: not stats.running)


async def test_one_that_is_full_says_so(go_live: Callable[..., Any], gateway: StartGateway) -> None:
    live = go_live(slots=1, max_queue=0, pace=5)
    front = await gateway({"name": "scripted", "upstream": live.url})
    ask = {"model": "scripted", "messages": MESSAGES, "max_tokens": 2}
    answers = await asyncio.gather(*(front.post("/v1/chat/completions", **ask) for _ in range(8)))
    assert {each.status_code for each in answers} == {200, 503}
    refused = next(each for each in answers if each.status_code == 503)
    assert refused.json()["error"]["code"] == "overloaded"
    assert "retry-after" in refused.headers
