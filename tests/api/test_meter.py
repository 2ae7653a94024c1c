"""What a request has used is on its meter at any moment."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from arriero.app.web import create_app
from arriero.core import Meter
from arriero.wire.headers import Application


class Metered:
    """An application between the test and the API that keeps every request's meter."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self.meters: list[Meter] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.meters.append(Meter())
        await self.app({**scope, "arriero.meter": self.meters[-1]}, receive, send)


@pytest.fixture
async def metered(serve: Callable[..., Any]) -> Any:
    async def start(**settings: Any) -> tuple[Any, Metered]:
        served = await serve(**settings)
        app = Metered(create_app(served.settings, served.model))
        served.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://arriero"
        )
        return served, app

    return start


@pytest.mark.parametrize("stream", [True, False])
async def test_meter_and_usage_are_the_same(metered: Any, stream: bool) -> None:
    served, app = await metered()
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    text = (await served.chat("Hello there", n=2, **options)).text
    usage = json.loads(text.split("\n\n")[-3].removeprefix("data: ") if stream else text)["usage"]
    meter = app.meters[0]
    assert (meter.endpoint, meter.model, meter.error) == ("/v1/chat/completions", served.model.name, None)
    assert usage["prompt_tokens"] == meter.prompt_tokens > 0
    assert usage["completion_tokens"] == meter.completion_tokens > 2
    assert meter.first_token_at


async def test_embeddings_rerankings_and_scores_are_metered(metered: Any) -> None:
    served, app = await metered()
    answers = [
        await served.post("/v1/embeddings", input=["Hello", "there"]),
        await served.post("/v1/rerank", query="Hello", documents=["there", "everybody"]),
        await served.post("/v1/score", text_1="Hello", text_2="there"),
    ]
    for answer, meter in zip(answers, app.meters, strict=True):
        assert answer.json()["usage"]["prompt_tokens"] == meter.prompt_tokens > 0
        assert meter.model == served.model.name
    assert [meter.endpoint for meter in app.meters] == ["/v1/embeddings", "/v1/rerank", "/v1/score"]


async def test_broken_off_stream_has_used_what_was_sampled(metered: Any) -> None:
    served, app = await metered(pace=200)
    body = json.dumps({"model": served.model.name, "prompt": "word " * 200, "stream": True, "max_tokens": 300}).encode()
    enough = asyncio.Event()
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": body}
        await enough.wait()
        return {"type": "http.disconnect"}

    num_chunks = 0

    async def send(message: Any) -> None:
        nonlocal num_chunks
        num_chunks += message.get("body", b"").count(b"data: ")
        if num_chunks >= 5:
            enough.set()

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
    }
    await app(scope, receive, send)
    await served.until(lambda stats: not stats.running)
    meter, stats = app.meters[0], served.model.engine.stats()
    assert meter.prompt_tokens == stats.prompt_tokens
    # What the engine sampled while the client left may have reached nobody.
    assert 5 <= num_chunks <= meter.completion_tokens <= stats.generated_tokens < 200


async def test_what_is_refused_has_used_nothing(metered: Any) -> None:
    served, app = await metered(max_queue=0, slots=1, pace=100)
    first = asyncio.create_task(served.chat("word " * 50))
    await served.until(lambda stats: stats.running == 1)
    refused = await served.chat()
    missing = await served.client.post("/v1/completions", json={"model": "a\nb", "prompt": "Hello"})
    first.cancel()
    assert (refused.status_code, missing.status_code) == (503, 404)
    assert [meter.error for meter in app.meters[1:]] == ["Overloaded", "UnknownModel"]
    assert [meter.prompt_tokens for meter in app.meters[1:]] == [0, 0]
    assert app.meters[2].model == ""


async def test_endpoints_are_routes_and_not_what_is_asked_for(metered: Any) -> None:
    served, app = await metered()
    for path in ("/v1/models/no/such/model", "/health", "/no/such/path"):
        await served.client.get(path)
    assert [meter.endpoint for meter in app.meters] == ["/v1/models/{model}", "/health", ""]
