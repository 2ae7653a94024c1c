import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from openai.types import Completion

from arriero.api import schemas

Serve = Callable[..., Awaitable[Any]]


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, which must end as the reference says."""
    assert answer.status_code == 200, answer.text
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(each.removeprefix("data: ")) for each in events]


async def test_an_answer_has_the_shape_of_the_reference(served: Any) -> None:
    answer = await served.complete("Hi")
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("id").startswith("cmpl-")
    assert body.pop("created") > 1_700_000_000
    assert body.pop("usage")["total_tokens"] == 5
    assert body == {
        "object": "text_completion",
        "model": "scripted",
        "system_fingerprint": served.model.fingerprint,
        "choices": [{"index": 0, "text": "Hi", "logprobs": None, "finish_reason": "stop"}],
    }


async def test_answers_fit_the_types_of_openai_and_our_own_description(served: Any) -> None:
    body = (await served.complete("Hi", n=2)).json()
    Completion.model_validate(body, strict=True)
    schemas.Completion.model_validate(body)
    for chunk in chunks(await served.complete("Hi", stream=True, stream_options={"include_usage": True})):
        schemas.Completion.model_validate(chunk)
        for choice in chunk["choices"]:  # openai's type does not know that a stream's reason is null at first
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        Completion.model_validate(chunk, strict=True)


async def test_a_stream_is_the_text_then_the_reason(serve: Serve) -> None:
    served = await serve(script=[{"reply": "ab"}], pace=5.0)  # What comes at once would be one chunk.
    events = chunks(await served.complete(stream=True))
    assert len({(each["id"], each["created"], each["model"], each["object"]) for each in events}) == 1
    assert [each["choices"] for each in events] == [
        [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "b", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}],
    ]
    assert all("usage" not in each for each in events)


async def test_usage_comes_last_in_a_stream_that_asks_for_it(served: Any) -> None:
    *events, last = chunks(await served.complete(["Hi", "you"], stream=True, stream_options={"include_usage": True}))
    assert all(each["usage"] is None for each in events)
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == 5
    assert last["usage"]["completion_tokens"] == 7


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_to_several_prompts_are_numbered_prompt_by_prompt(served: Any, stream: bool) -> None:
    answer = await served.complete(["a", "bc"], n=2, stream=stream)
    texts = dict.fromkeys(range(4), "")
    for body in chunks(answer) if stream else [answer.json()]:
        for choice in body["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == {0: "a", 1: "a", 2: "bc", 3: "bc"}


async def test_a_prompt_may_be_tokens(served: Any) -> None:
    tokens = served.model.tokenizer.encode("Hé")
    assert (await served.complete(tokens)).json()["choices"][0]["text"] == "Hé"
    both = (await served.complete([tokens, tokens[:1]])).json()["choices"]
    assert [choice["text"] for choice in both] == ["Hé", "H"]


@pytest.mark.parametrize("prompt", [None, "", [""]])
async def test_no_prompt_is_a_new_document(served: Any, prompt: Any) -> None:
    body = (await served.complete(prompt)).json()
    assert body["usage"]["prompt_tokens"] == 1
    assert body["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "prompt", [[], [[]], [1, "a"], ["a", 1], [[1], "a"], [-1], [10**6], [2**70], [1.5], [True], {"a": 1}, 5, [["a"]]]
)
async def test_what_is_no_prompt_is_refused(served: Any, prompt: Any) -> None:
    answer = await served.complete(prompt)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == "prompt"


async def test_the_prompt_is_not_put_into_a_template(served: Any) -> None:
    assert (await served.complete("Hello")).json()["usage"]["prompt_tokens"] == 5


async def test_without_a_limit_the_answer_may_have_4096_tokens(serve: Serve) -> None:
    served = await serve(script=[{"reply": "x" * 5000}])
    body = (await served.complete()).json()
    assert body["usage"]["completion_tokens"] == 4096
    assert body["choices"][0]["finish_reason"] == "length"


async def test_the_default_limit_gives_way_to_the_context(serve: Serve) -> None:
    served = await serve(context=50, script=[{"reply": "x" * 5000}])
    assert (await served.complete("Hello")).json()["usage"]["total_tokens"] == 50


async def test_an_explicit_limit_does_not(serve: Serve) -> None:
    served = await serve(context=50)
    answer = await served.complete("Hello", max_tokens=46)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert (await served.complete("Hello", max_tokens=45)).status_code == 200


async def test_more_answers_than_can_ever_run_are_refused(serve: Serve) -> None:
    served = await serve(slots=2)
    for param, given in (
        ("prompt", {"prompt": ["a", "b", "c"]}),
        ("n", {"n": 3}),
        ("n", {"n": 3, "stream": True}),
        ("n", {"prompt": ["a", "b"], "n": 2}),
        ("best_of", {"best_of": 3}),
        ("best_of", {"best_of": 3, "n": 2}),
        ("num_beams", {"num_beams": 3}),
    ):
        answer = await served.complete(**given)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param)


async def test_more_tokens_than_are_ever_held_at_once_are_refused_by_name(serve: Serve) -> None:
    served = await serve(context=100, token_budget=100)
    for param, given in (
        ("n", {"n": 2}),
        ("best_of", {"best_of": 2}),
        ("best_of", {"best_of": 4, "n": 2}),
        ("num_beams", {"num_beams": 2}),
        ("max_tokens", {"prompt": ["a", "b"]}),
        ("prompt", {"prompt": ["a" * 60, "b" * 60], "max_tokens": 1}),
    ):
        answer = await served.complete(**{"max_tokens": 60, **given})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == (param, "context_length_exceeded")


async def test_others_go_on_while_a_long_prompt_is_read(served: Any) -> None:
    asking = asyncio.create_task(served.complete("a long prompt " * 60_000))
    turns = 0
    while not asking.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert (await asking).json()["error"]["code"] == "context_length_exceeded"
    assert turns > 20
