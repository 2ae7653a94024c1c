from collections.abc import Awaitable, Callable
from typing import Any

from openai.types import Model


async def test_models_are_listed(served: Any) -> None:
    body = (await served.client.get("/v1/models")).json()
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["scripted"]
    Model.model_validate(body["data"][0], strict=True)


async def test_a_model_tells_about_itself(serve: Callable[..., Awaitable[Any]]) -> None:
    served = await serve(context=100)
    body = (await served.client.get("/v1/models/scripted")).json()
    Model.model_validate(body, strict=True)
    assert (body["object"], body["owned_by"]) == ("model", "arriero")
    assert body["card"]["context"] == body["context_length"] == 100
    assert body["capabilities"] == ["completion", "chat", "embedding", "rerank", "score"]
    chat, completions = (body["supported_parameters"][each] for each in ("chat/completions", "completions"))
    assert {"messages", "temperature", "top_logprobs", "num_beams"} <= set(chat)
    assert {"prompt", "echo", "best_of"} <= set(completions)
    assert {"input", "dimensions"} <= set(body["supported_parameters"]["embeddings"])
    assert not {"tools", "user", "suffix", "response_format"} & {*chat, *completions}
    assert body["card"]["invariant"] is True


async def test_an_id_may_have_slashes(serve: Callable[..., Awaitable[Any]]) -> None:
    served = await serve(model_name="some/model:x y")
    for path in ("some/model:x y", "some%2Fmodel:x%20y"):
        answer = await served.client.get(f"/v1/models/{path}")
        assert answer.json()["id"] == "some/model:x y"
    assert (await served.chat()).json()["model"] == "some/model:x y"


async def test_an_unknown_model_is_not_found(served: Any) -> None:
    for name in ("gpt-9", "scripted/", "/scripted", "a/b", ""):
        answer = await served.client.get(f"/v1/models/{name}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"
