from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from arriero.app.front import Front
from arriero.config import Settings
from arriero.store.ledger import Ledger

Start = Callable[..., Awaitable[Any]]


async def test_pages_of_other_origins_may_ask_where_the_settings_say_so(serve: Start) -> None:
    client = (await serve(cors_origins="https://one.example,https://two.example")).client
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    allowed = await client.options("/v1/chat/completions", headers={"origin": "https://two.example", **ask})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://two.example"
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    refused = await client.options("/v1/chat/completions", headers={"origin": "https://three.example", **ask})
    assert refused.status_code == 400
    answer = await client.get("/v1/models", headers={"origin": "https://one.example"})
    assert answer.headers["access-control-allow-origin"] == "https://one.example"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]


async def test_pages_of_other_origins_may_not_ask_by_default(served: Any) -> None:
    answer = await served.client.get("/v1/models", headers={"origin": "https://one.example"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/llm/v1/models", "/v1/models"])
async def test_a_proxy_may_show_the_server_below_a_path(serve: Start, path: str) -> None:
    served = await serve(root_path="/llm")
    assert (await served.client.get(path)).json()["data"][0]["id"] == "scripted"
    assert (await served.client.get("/llm/health/ready")).status_code == 200
    assert (await served.client.get("/llm/openapi.json")).json()["servers"] == [{"url": "/llm"}]
    assert (await served.client.post("/llm/tokenize", json={"model": "scripted", "prompt": "a"})).status_code == 200
    assert (await served.client.get("/llmx/v1/models")).status_code == 404


async def test_who_comes_while_models_load_waits_as_long_as_the_settings_say() -> None:
    front = Front(Settings(load_wait=0.05), Ledger(None), closed=False)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(front.application), base_url="http://a") as client:
        answer = await client.get("/v1/models")
        ready = await client.get("/health/ready")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.elapsed.total_seconds() >= 0.05
    assert (ready.status_code, ready.json()) == (503, {"status": "loading"})
