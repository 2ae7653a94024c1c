"""The `openai` package against a live server."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

QUESTION: Any = [{"role": "user", "content": "What is your name?"}]
ANSWER = "I am Arriero. 🦙"


def test_chat(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model="scripted", messages=QUESTION)
    assert completion.choices[0].message.content == ANSWER
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage
    assert completion.usage.completion_tokens == len(ANSWER.encode()) + 1
    assert completion._request_id
    assert completion._request_id.startswith("req_")


def test_chat_streamed(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="scripted", messages=QUESTION, n=2, stream=True, stream_options={"include_usage": True}
    )
    texts, usage = {0: "", 1: ""}, None
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
        usage = chunk.usage
    assert texts == {0: ANSWER, 1: ANSWER}
    assert usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_the_helper_that_gathers_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="scripted", messages=QUESTION) as stream:
        assert stream.get_final_completion().choices[0].message.content == ANSWER


def test_completion(client: openai.OpenAI) -> None:
    completion = client.completions.create(model="scripted", prompt=["Once upon a time", "else"], n=2, max_tokens=64)
    assert [choice.text for choice in completion.choices] == [", there was a mule."] * 2 + ["Hello there"] * 2


def test_completion_streamed(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="scripted", prompt="Once upon a time", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == ", there was a mule."


def test_embeddings(client: openai.OpenAI) -> None:
    """The client asks for base64 by itself, and decodes it."""
    texts = ["A mule.", "A llama.", "A mule."]
    answer = client.embeddings.create(model="scripted", input=texts, dimensions=8)
    assert [each.index for each in answer.data] == [0, 1, 2]
    assert answer.usage.total_tokens == len("".join(texts))
    plain = client.embeddings.create(model="scripted", input=texts, dimensions=8, encoding_format="float")
    for coded, each in zip(answer.data, plain.data, strict=True):
        assert coded.embedding == pytest.approx(each.embedding)
    assert answer.data[0].embedding == answer.data[2].embedding != answer.data[1].embedding
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="scripted", input="")
    assert refused.value.param == "input"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["scripted"]
    assert client.models.retrieve("scripted").owned_by == "arriero"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_a_model_whose_name_has_slashes(go_live: Callable[..., Any]) -> None:
    live = go_live(model_name="org/model")
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="EMPTY") as client:
        assert client.models.retrieve("org/model").id == "org/model"


@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_their_class(client: openai.OpenAI, stream: bool) -> None:
    create: Any = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as unknown:
        create(model="gpt-9", messages=QUESTION, stream=stream)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as refused:
        create(model="scripted", messages=QUESTION, tools=[{"type": "function"}], stream=stream)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "tools")
    assert refused.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as long:
        create(model="scripted", messages=[{"role": "user", "content": "x" * 40_000}], stream=stream)
    assert long.value.code == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_server_is_an_internal_server_error(go_live: Callable[..., Any], stream: bool) -> None:
    live = go_live(slots=1, max_queue=0, pace=20.0)
    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="EMPTY", max_retries=0) as client:
        busy = await client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "x" * 1000}], stream=True
        )
        async for _ in busy:
            break
        create: Any = client.chat.completions.create
        with pytest.raises(openai.InternalServerError) as full:
            await create(model="scripted", messages=QUESTION, stream=stream)
        assert full.value.status_code == 503
        assert full.value.response.headers["retry-after"]
        await busy.close()


def test_an_engine_that_dies_in_mid_stream_is_an_error(go_live: Callable[..., Any], monkeypatch: Any) -> None:
    live = go_live(pace=100.0)
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="EMPTY", max_retries=0) as client:
        stream = client.chat.completions.create(model="scripted", messages=QUESTION, stream=True)
        assert next(stream).choices[0].delta.role == "assistant"
        monkeypatch.setattr("arriero.runners.scripted.ScriptedRunner.step", None)
        with pytest.raises(openai.APIError) as died:
            list(stream)
        assert died.value.code == "engine_died"


async def test_embeddings_of_many_asynchronously(live: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="EMPTY") as client:
        tokens = [[place % 250, 7] for place in range(500)]
        answer = await client.embeddings.create(model="scripted", input=tokens)
        assert len(answer.data) == 500


async def test_asynchronously(live: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="EMPTY") as client:
        completion = await client.chat.completions.create(model="scripted", messages=QUESTION)
        assert completion.choices[0].message.content == ANSWER
        stream = await client.chat.completions.create(model="scripted", messages=QUESTION, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == ANSWER
        text = await client.completions.create(model="scripted", prompt="Once upon a time")
        assert text.choices[0].text == ", there was a mule."
        assert [model.id async for model in client.models.list()] == ["scripted"]
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-9")
