"""An encoder-decoder behind the API: its limits, what it refuses, and chats without a template."""

import httpx
import pytest

from arriero.api.application import application
from arriero.app.script import byte_tokenizer
from arriero.engine.local import LocalEngine
from arriero.models.card import ModelCard
from arriero.pool import Pool, ServedModel
from arriero.runners.scripted import ScriptedRunner
from arriero.text.chat import plain_template
from arriero.text.stop import stop_constraints


@pytest.fixture
async def post():
    tokenizer = byte_tokenizer()
    (end,) = tokenizer.end_token_ids

    def runner():
        return ScriptedRunner(
            vocab_size=tokenizer.vocab_size,
            num_slots=4,
            context=21,
            end_token_id=end,
            source_context=40,
            decoder_start=(end,),
        )

    card = ModelCard(
        name="echo",
        source="script",
        family="scripted",
        parameters=0,
        context=21,
        vocab_size=tokenizer.vocab_size,
        source_format="script",
        weights="none",
        invariant=True,
        tasks=("completion", "chat"),
    )
    model = ServedModel(
        card=card,
        created=0,
        engine=LocalEngine(runner, constraints=stop_constraints(tokenizer)),
        tokenizer=tokenizer,
        template=plain_template(tokenizer),
        fingerprint="fp_test",
    )
    await model.engine.start()
    transport = httpx.ASGITransport(application(Pool([model])))
    async with httpx.AsyncClient(transport=transport, base_url="http://arriero") as client:

        async def send(path, **body):
            return await client.request("POST" if body else "GET", path, json={"model": "echo", **body})

        yield send
    await model.engine.close()


async def test_a_prompt_longer_than_the_answer_may_be_is_answered(post):
    answer = (await post("/v1/completions", prompt="x" * 35)).json()
    assert answer["choices"][0]["text"] == "x" * 20
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["prompt_tokens"] == 35
    assert answer["usage"]["completion_tokens"] == 20


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": "x" * 41}, "prompt", "reads at most 40 tokens"),
        ({"max_tokens": 21}, "max_tokens", "21"),
        ({"echo": True}, "echo", "encoder-decoder"),
        ({"prompt_logprobs": 1}, "prompt_logprobs", "encoder-decoder"),
        ({"suffix": "end"}, "suffix", "Unsupported parameter"),
    ],
)
async def test_what_it_cannot_do_is_refused_by_name(post, body, param, words):
    answer = await post("/v1/completions", **{"prompt": "Hi", **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert words in error["message"]
    assert error["param"] in (param, "prompt")


async def test_a_chat_is_its_messages_line_by_line(post):
    messages = [{"role": "system", "content": "Sum up:"}, {"role": "user", "content": "a b"}]
    answer = (await post("/v1/chat/completions", messages=messages)).json()
    assert answer["choices"][0]["message"]["content"] == "Sum up:\na b"


async def test_the_model_tells_what_it_takes(post):
    model = (await post("/v1/models/echo")).json()
    assert model["context_length"] == 20
    assert model["card"]["source_context"] == 40
    assert "echo" not in model["supported_parameters"]["completions"]
    assert "num_beams" in model["supported_parameters"]["completions"]


async def test_a_continued_message_is_refused(post):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    answer = await post("/v1/chat/completions", messages=messages, continue_final_message=True)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "continue_final_message"


async def test_it_gives_no_vectors_and_says_what_it_can_do(post):
    answer = await post("/v1/embeddings", input="a")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "model")
    assert "embeddings" in error["message"]
    assert "completion, chat" in error["message"]
