"""The profile of the Chinese-LLaMA-Alpaca server: its prompts, defaults and shapes."""

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from arriero.api import alpaca_schemas as schemas

Serve = Callable[..., Awaitable[Any]]

INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n"
    "    \n### Instruction:\nSay hi\n\n### Response: "
)
SENTENCE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
SHORTUUID = "[2-9A-HJ-NP-Za-km-z]{22}"


async def ask(served: Any, path: str, **body: Any) -> tuple[Any, Any]:
    """The answer, and what the engine was asked."""
    seen: list[Any] = []
    generate = served.model.engine.generate
    served.model.engine.generate = lambda request: (seen.append(request), generate(request))[1]
    answer = await served.client.post(path, json=body)
    del served.model.engine.generate
    assert answer.status_code == 200, answer.text
    return answer, seen[0]


async def prompt_of(served: Any, path: str, **body: Any) -> str:
    return str(served.model.tokenizer.decode((await ask(served, path, **body))[1].prompts[0]))


def chunks(answer: Any) -> list[dict[str, Any]]:
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(each.removeprefix("data: ")) for each in events]


@pytest.fixture
async def alpaca(serve: Serve) -> Any:
    return await serve(profile="alpaca", script=[{"reply": " \nHello,  you. \n"}])


async def test_a_completion_has_the_printed_shape(alpaca: Any) -> None:
    body = (await alpaca.client.post("/v1/completions", json={"prompt": "Say hi"})).json()
    assert re.fullmatch(f"cmpl-{SHORTUUID}", body.pop("id"))
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "object": "text_completion",
        "model": "chinese-llama-alpaca",
        "choices": [{"index": 0, "text": "Hello,  you."}],
    }


async def test_a_chat_has_the_printed_shape(alpaca: Any) -> None:
    messages = [
        {"role": "user", "message": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "message": "Say hi"},
    ]
    answer = await alpaca.client.post("/v1/chat/completions", json={"messages": messages, "repetition_penalty": 1.0})
    body = answer.json()
    assert re.fullmatch(f"chatcmpl-{SHORTUUID}", body.pop("id"))
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "object": "chat.completion",
        "model": "chinese-llama-alpaca",
        "choices": [
            {"index": 0, "message": {"role": "user", "content": "Hi"}},
            {"index": 1, "message": {"role": "assistant", "content": "Yes?"}},
            {"index": 2, "message": {"role": "user", "content": "Say hi"}},
            {"index": 3, "message": {"role": "assistant", "content": "Hello,  you."}},
        ],
    }


async def test_messages_may_be_a_string(alpaca: Any) -> None:
    answer, request = await ask(alpaca, "/v1/chat/completions", messages="Say hi")
    prompt = alpaca.model.tokenizer.decode(request.prompts[0])
    assert prompt == f"{SENTENCE}\n\n### Instruction:\nSay hi\n\n### Response: "
    assert answer.json()["choices"][0] == {"index": 0, "message": {"role": "user", "content": "Say hi"}}


async def test_completions_are_instructions(alpaca: Any) -> None:
    assert await prompt_of(alpaca, "/v1/completions", prompt="Say hi") == INSTRUCTION


async def test_tokens_are_taken_as_they_are(alpaca: Any) -> None:
    assert await prompt_of(alpaca, "/v1/completions", prompt=alpaca.model.tokenizer.encode("Say hi")) == "Say hi"


async def test_the_last_system_message_stands_first(alpaca: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "C"},
    ]
    assert await prompt_of(alpaca, "/v1/chat/completions", messages=messages) == (
        "Be kind.\n\n### Instruction:\nA\n\n### Response: B\n\n### Instruction:\nC\n\n### Response: "
    )


async def test_a_role_that_alpaca_does_not_know_is_refused(alpaca: Any) -> None:
    messages = [{"role": "tool", "content": "42"}]
    answer = await alpaca.client.post("/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"


async def test_the_defaults_are_that_servers(alpaca: Any) -> None:
    _, completion = await ask(alpaca, "/v1/completions", prompt="Say hi")
    sampling = completion.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, completion.max_tokens) == (0.1, 0.75, 40, 128)
    assert (sampling.repetition_penalty, completion.beams, completion.num_choices) == (1.0, None, 1)
    _, chat = await ask(alpaca, "/v1/chat/completions", messages="Say hi", temperature=None)
    sampling = chat.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, chat.max_tokens) == (0.7, 1.0, 40, 128)


async def test_what_is_given_counts_more_than_a_default(alpaca: Any) -> None:
    _, request = await ask(
        alpaca, "/v1/chat/completions", messages="Say hi", temperature=2, top_k=0, max_completion_tokens=7
    )
    assert (request.sampling.temperature, request.sampling.top_k, request.max_tokens) == (2, 0, 7)


async def test_without_sampling_it_is_greedy(alpaca: Any) -> None:
    _, request = await ask(alpaca, "/v1/completions", prompt="Say hi", do_sample=False)
    assert request.sampling.temperature == 0


async def test_a_default_limit_gives_way_to_the_context(serve: Serve) -> None:
    served = await serve(profile="alpaca", context=len(INSTRUCTION) + 5)
    _, request = await ask(served, "/v1/completions", prompt="Say hi")
    assert request.max_tokens == 5


async def test_any_model_is_this_one_and_that_is_told(alpaca: Any) -> None:
    answer, _ = await ask(alpaca, "/v1/completions", prompt="Say hi", model="gpt-3.5-turbo")
    assert answer.json()["model"] == "chinese-llama-alpaca"
    assert answer.headers["x-arriero-ignored"] == "model"
    answer, _ = await ask(alpaca, "/v1/completions", prompt="Say hi", model="chinese-llama-alpaca")
    assert "x-arriero-ignored" not in answer.headers


async def test_a_name_may_be_given(serve: Serve) -> None:
    served = await serve(profile="alpaca", model_name="mine")
    assert (await served.client.post("/v1/completions", json={"prompt": "Hi"})).json()["model"] == "mine"


async def test_a_chat_is_streamed_at_the_answers_index(alpaca: Any) -> None:
    messages = [{"role": "user", "message": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    body = {"messages": [*messages, {"role": "user", "content": "Say hi"}], "stream": True}
    events = chunks(await alpaca.client.post("/v1/chat/completions", json=body))
    assert all(event.keys() == {"id", "object", "created", "model", "choices"} for event in events)
    choices = [event["choices"][0] for event in events]
    assert all(choice.keys() == {"index", "delta"} and choice["index"] == 3 for choice in choices)
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"]["content"] for choice in choices) == "Hello,  you."


async def test_a_completion_is_streamed(alpaca: Any) -> None:
    events = chunks(await alpaca.client.post("/v1/completions", json={"prompt": "Say hi", "stream": True}))
    assert all(event["choices"][0].keys() == {"index", "text"} for event in events)
    assert "".join(event["choices"][0]["text"] for event in events) == "Hello,  you."


async def test_several_answers_follow_the_conversation(alpaca: Any) -> None:
    body = {"messages": "Say hi", "n": 2}
    choices = (await alpaca.client.post("/v1/chat/completions", json=body)).json()["choices"]
    assert [(choice["index"], choice["message"]["role"]) for choice in choices] == [
        (0, "user"),
        (1, "assistant"),
        (2, "assistant"),
    ]


async def test_usage_is_streamed_when_asked_for(alpaca: Any) -> None:
    body = {"prompt": "Say hi", "stream": True, "stream_options": {"include_usage": True}}
    assert chunks(await alpaca.client.post("/v1/completions", json=body))[-1]["usage"]["prompt_tokens"] == len(
        INSTRUCTION
    )


async def test_errors_are_those_of_the_reference(alpaca: Any) -> None:
    answer = await alpaca.client.post("/v1/completions", json={"prompt": "Say hi", "temperature": 3})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "temperature"


@pytest.mark.parametrize("stream", [False, True])
async def test_white_space_inside_the_answer_stays(serve: Serve, stream: bool) -> None:
    served = await serve(profile="alpaca", pace=2000.0, script=[{"reply": "  a \n b  c \n "}])
    answer = await served.client.post("/v1/completions", json={"prompt": "Say hi", "stream": stream})
    bodies = chunks(answer) if stream else [answer.json()]
    assert "".join(body["choices"][0]["text"] for body in bodies) == "a \n b  c"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "whole", "chunk"),
    [
        (
            "/v1/chat/completions",
            {"messages": "Say hi", "logprobs": True, "top_logprobs": 1},
            schemas.AlpacaChatCompletion,
            schemas.AlpacaChatCompletionChunk,
        ),
        (
            "/v1/completions",
            {"prompt": "Say hi", "logprobs": 1},
            schemas.AlpacaCompletion,
            schemas.AlpacaCompletion,
        ),
    ],
)
async def test_answers_are_as_the_description_says(
    path: str, body: dict[str, Any], whole: Any, chunk: Any, stream: bool, alpaca: Any
) -> None:
    plain = {name: value for name, value in body.items() if "logprobs" not in name}
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    for asked in (plain, body, plain | usage if stream else plain | {"prompt_logprobs": 1}):
        answer = await alpaca.client.post(path, json=asked | ({"stream": True} if stream else {}))
        for each in chunks(answer) if stream else [answer.json()]:
            read = (chunk if stream else whole).model_validate(each)
            assert read.model_dump(mode="json", exclude_unset=True) == each
    schema = (await alpaca.client.get("/openapi.json")).json()
    content = schema["paths"][path]["post"]["responses"]["200"]["content"]
    if stream:
        data = content["text/event-stream"]["itemSchema"]["properties"]["data"]
        shown = data["anyOf"][0]["contentSchema"]["anyOf"][0]["$ref"]
    else:
        shown = content["application/json"]["schema"]["$ref"]
    assert shown.endswith(f"/{(chunk if stream else whole).__name__}")
    assert shown.rsplit("/", 1)[1] in schema["components"]["schemas"]
