"""Adapters in service: names of their own over one engine, and the seed's way to name base, adapter and tokenizer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from arriero.app import load
from arriero.app.web import create_app
from arriero.config import Settings
from arriero.errors import ConfigError, ModelLoadError
from directories import write_model, write_tokenizer
from references import lora

BASE = lora.CASES["plain"].checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory of the model that the adapters are for."""
    directory = write_model(tmp_path_factory.mktemp("models") / "base", BASE)
    return write_tokenizer(directory, BASE.vocab_size, "{{ messages[0].content }}")


@pytest.fixture
def adapter(tmp_path: Path) -> Any:
    """Write one of the reference adapters."""
    return lambda name, **changes: lora.write_adapter(name, tmp_path / name, **changes)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    model = load(settings)
    await model.engine.start()
    transport = httpx.ASGITransport(create_app(settings, model))
    async with httpx.AsyncClient(transport=transport, base_url="http://arriero") as client:
        yield client
    await model.engine.close()


async def complete(client: httpx.AsyncClient, model: str, **others: Any) -> Any:
    body = {"model": model, "prompt": "Once upon", "max_tokens": 8, "temperature": 0, "ignore_eos": True, **others}
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_adapters_have_names_of_their_own_over_one_engine(base, adapter, cache):
    places = {
        "linear": str(adapter("all_linear")),
        "resized": str(write_tokenizer(adapter("resized"), 307, "T {{ 1 }}")),
    }
    settings = Settings(base_model=str(base), lora=places, cache=cache, slots=8, threads=1, weights="fp32")
    async with serving(settings) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        health = (await client.get("/health")).json()
        answers = {name: await complete(client, name, logprobs=3) for name in ("base", "linear", "resized")}
        again = [await complete(client, name, logprobs=3, n=2, best_of=3, temperature=1, seed=3) for name in answers]
        beams = [await complete(client, name, num_beams=3, n=2) for name in answers]
        chat = {"model": "resized", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        asked = (await client.post("/v1/chat/completions", json=chat)).json()["usage"]["prompt_tokens"]
        bodies = [{"model": name, "input": "Once upon"} for name in answers]
        vectors = [(await client.post("/v1/embeddings", json=body)).json()["data"][0]["embedding"] for body in bodies]
        tokens = await client.post("/tokenize", json={"model": "resized", "prompt": "¶49", "return_token_strs": True})
    assert [(each["id"], each["parent"]) for each in listed] == [
        ("base", None),
        ("linear", "base"),
        ("resized", "base"),
    ]
    assert set(health["models"]) == set(answers)
    texts = {answer["choices"][0]["text"] for answer in answers.values()}
    assert len(texts) == len({answer["system_fingerprint"] for answer in answers.values()}) == 3
    assert len({answer["choices"][0]["text"] for answer in again}) == 3
    assert len({answer["choices"][0]["text"] for answer in beams}) == 3
    assert len({tuple(vector) for vector in vectors}) == 3
    assert {len(vector) for vector in vectors} == {BASE.hidden_size}
    assert asked == len("T 1")
    assert tokens.json()["tokens"] == [306]


async def test_an_answer_does_not_depend_on_other_adapters_in_the_batch(base, adapter, cache):
    places = {name: str(adapter(name)) for name in ("all_linear", "embeddings", "head")}
    settings = Settings(base_model=str(base), lora=places, cache=cache, slots=16, threads=1)
    async with serving(settings) as client:
        asked = [(name, seed) for name in ("base", *places) for seed in range(3)]
        alone = [await complete(client, name, seed=seed, temperature=1, n=2) for name, seed in asked]
        crowd = await asyncio.gather(*(complete(client, name, seed=seed, temperature=1, n=2) for name, seed in asked))
    assert [answer["choices"] for answer in alone] == [answer["choices"] for answer in crowd]


async def test_every_filter_copes_with_tokens_that_an_adapter_does_not_know(base, adapter, cache):
    """Rows of the base in a batch whose vocabulary is larger end in negative infinities."""
    places = {"resized": str(write_tokenizer(adapter("resized"), 307))}
    settings = Settings(base_model=str(base), lora=places, cache=cache, slots=8, threads=1)
    alone = Settings(base_model=str(base), cache=cache, slots=8, threads=1, engine="onnx")
    parameters: list[dict[str, Any]] = [
        {"typical_p": 0.9, "temperature": 1, "seed": 1},
        {"min_p": 0.01, "temperature": 1.5, "seed": 1},
        {"top_p": 0.95, "top_k": 50, "temperature": 1, "seed": 1, "repetition_penalty": 1.3},
        {"presence_penalty": -1, "frequency_penalty": 1, "logit_bias": {"3": 5}},
        {"logprobs": 5, "echo": True, "prompt_logprobs": 2},
        {"num_beams": 3, "n": 2},
        {"num_beams": 3, "temperature": 1, "seed": 2},
    ]
    answers = []
    for chosen in (settings, alone):
        async with serving(chosen) as client:
            answers.append([(await complete(client, "base", **each))["choices"] for each in parameters])
    assert answers[0] == answers[1]


async def test_token_ids_of_another_vocabulary_are_refused(base, adapter, cache):
    places = {"resized": str(write_tokenizer(adapter("resized"), 307))}
    async with serving(Settings(base_model=str(base), lora=places, cache=cache, slots=8, threads=1)) as client:
        bodies = {name: {"model": name, "prompt": [[306]], "max_tokens": 1} for name in ("base", "resized")}
        answers = {name: await client.post("/v1/completions", json=body) for name, body in bodies.items()}
    assert answers["resized"].status_code == 200
    assert answers["base"].status_code == 400
    assert "299" in answers["base"].json()["error"]["message"]


def test_two_models_of_one_name_are_refused(base, adapter, cache):
    with pytest.raises(ConfigError, match="the name 'base', which is the model's own"):
        load(Settings(base_model=str(base), lora={"base": str(adapter("plain"))}, cache=cache, threads=1))


async def test_the_model_is_its_base_with_the_adapter(base, adapter, cache):
    place = write_tokenizer(adapter("resized"), 307)
    settings = Settings(base_model=str(base), lora_model=str(place), cache=cache, slots=4, threads=1, load_in_8bit=True)
    async with serving(settings) as client:
        (listed,) = (await client.get("/v1/models")).json()["data"]
        answer = await complete(client, "base")
        tokens = (await client.post("/tokenize", json={"model": "base", "prompt": "¶49"})).json()["tokens"]
    assert (listed["id"], listed["parent"], listed["card"]["weights"]) == ("base", None, "int8")
    assert tokens == [306]
    assert answer["choices"][0]["text"]


def test_the_tokenizer_is_that_of_its_path_then_the_adapters_then_the_bases(base, adapter, cache, tmp_path):
    options = {"base_model": str(base), "cache": cache, "threads": 1, "weights": "fp32"}
    assert load(Settings(lora_model=str(adapter("plain")), **options)).tokenizer.vocab_size == 300
    own = write_tokenizer(adapter("resized"), 307)
    assert load(Settings(lora_model=str(own), **options)).tokenizer.vocab_size == 307
    with pytest.raises(ModelLoadError, match=r"has 300 tokens, the model with the adapter .* 307"):
        load(Settings(lora_model=str(own), tokenizer_path=base, **options))
    padded = write_tokenizer(tmp_path / "padded", 306)
    with pytest.raises(
        ModelLoadError, match=r"has 306 tokens, the model with the adapter .* base model alone: 300\) 307"
    ):
        load(Settings(lora_model=str(own), tokenizer_path=padded, **options))


@pytest.mark.parametrize("size", [301, 400])
def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(base, adapter, cache, tmp_path, size):
    options = {"base_model": str(base), "cache": cache, "threads": 1, "weights": "fp32"}
    larger = write_tokenizer(tmp_path / "larger", size)
    with pytest.raises(ModelLoadError, match=f"has {size} tokens, the model with the adapter .* 300"):
        load(Settings(lora_model=str(adapter("plain")), tokenizer_path=larger, **options))
    with pytest.raises(ModelLoadError, match=f"has {size} tokens, the model 300"):
        load(Settings(tokenizer_path=larger, **options))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "a", "base_model": "b"}, "give the model once"),
        ({"lora_model": "a"}, "needs the base model"),
        ({"base_model": "a", "only_cpu": True, "gpus": "0,1"}, "--only-cpu excludes --gpus"),
        ({"base_model": "a", "load_in_8bit": True, "weights": "fp32"}, "--load-in-8bit excludes --weights fp32"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        load(Settings(**given))
