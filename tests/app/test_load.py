"""From a directory on disk to answers, with everything in between as it is in service."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from arriero.app import load
from arriero.app.web import create_app
from arriero.config import Settings
from arriero.errors import ConfigError, ModelLoadError
from tiny_directory import write_directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_directory(tmp_path / "Tiny-Random")


def settings(directory: Path, **others: Any) -> Settings:
    return Settings(model=str(directory), cache=directory.parent / "cache", slots=4, threads=1, **others)


async def test_a_directory_is_served(directory: Path) -> None:
    chosen = settings(directory)
    model = load(chosen)
    await model.engine.start()
    transport = httpx.ASGITransport(create_app(chosen, model))
    async with httpx.AsyncClient(transport=transport, base_url="http://arriero") as client:
        card = (await client.get("/v1/models/Tiny-Random")).json()["card"]
        body = {
            "model": "Tiny-Random",
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 5,
            "ignore_eos": True,
            "seed": 1,
        }
        first, second = [(await client.post("/v1/chat/completions", json=body)).json() for _ in range(2)]
    await model.engine.close()
    assert card["context"] == 128
    assert card["family"] == "llama"
    assert card["weights"] == "int8"
    assert card["invariant"] is True
    assert first["usage"]["prompt_tokens"] == len("user: Hi\nassistant: ")
    assert first["usage"]["completion_tokens"] == 5
    assert first["choices"] == second["choices"]
    assert first["system_fingerprint"] == model.fingerprint


async def test_a_model_without_a_template_completes_and_does_not_chat(directory: Path) -> None:
    (directory / "tokenizer_config.json").unlink()
    chosen = settings(directory, model_name="mine", weights="fp32")
    model = load(chosen)
    assert model.template is None
    assert model.card.weights == "fp32"
    await model.engine.start()
    transport = httpx.ASGITransport(create_app(chosen, model))
    async with httpx.AsyncClient(transport=transport, base_url="http://arriero") as client:
        body = {"model": "mine", "messages": [{"role": "user", "content": "Hi"}]}
        chat = await client.post("/v1/chat/completions", json=body)
        text = await client.post("/v1/completions", json={"model": "mine", "prompt": "Hi", "max_tokens": 1})
    await model.engine.close()
    assert chat.status_code == 400
    assert chat.json()["error"]["param"] == "model"
    assert text.status_code == 200


def test_the_fingerprint_tells_what_may_change_answers(directory: Path) -> None:
    int8, again, fp32 = (load(settings(directory, weights=weights)) for weights in ("auto", "int8", "fp32"))
    alpaca = load(settings(directory, profile="alpaca"))
    assert int8.fingerprint == again.fingerprint
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer | {"version": "1.0", "truncation": None}))
    tokens = load(settings(directory))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "chat_template": "x"}))
    template = load(settings(directory))
    (directory / "model.safetensors").touch()
    weights = load(settings(directory))
    models = [int8, fp32, alpaca, tokens, template, weights]
    assert len({model.fingerprint for model in models}) == len(models)


@pytest.mark.parametrize(
    ("engine", "weights", "graphs"),
    [("native", "int8", 0), ("native", "int4", 0), ("onnx", "int8", 2)],  # one of two graphs verifies
)
async def test_guesses_change_no_answer(directory: Path, engine: str, weights: str, graphs: int) -> None:
    said = []
    for speculation in (0, 3, None):
        chosen = settings(directory, speculation=speculation, engine=engine, weights=weights)
        model = load(chosen)
        await model.engine.start()
        transport = httpx.ASGITransport(create_app(chosen, model))
        async with httpx.AsyncClient(transport=transport, base_url="http://arriero") as client:
            body = {"model": "Tiny-Random", "prompt": "abcabcabc", "max_tokens": 110, "logprobs": 2, "ignore_eos": True}
            answer = (await client.post("/v1/completions", json=body | {"temperature": 0})).json()
        said.append(answer["choices"])
        await model.engine.close()
    assert said[0] == said[1] == said[2]
    assert len(list((directory.parent / "cache").rglob("model.onnx"))) == graphs


@pytest.mark.parametrize("others", [{"weights": "int4", "engine": "onnx"}, {"engine": "torch"}], ids=str)
def test_guesses_that_could_not_be_verified_are_refused(directory: Path, others: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--speculation"):
        load(settings(directory, speculation=3, **others))


def test_the_fingerprint_of_a_script_tells_its_replies(tmp_path: Path) -> None:
    prints = set()
    for reply in ("a", "b"):
        script = tmp_path / "script.json"
        script.write_text(json.dumps({"reply": reply}))
        prints |= {load(Settings(engine="scripted", script=script)).fingerprint for _ in range(2)}
    assert len(prints) == 2


def test_an_alpaca_model_has_its_template_and_name(directory: Path) -> None:
    (directory / "tokenizer_config.json").unlink()
    model = load(settings(directory, profile="alpaca"))
    assert model.name == "chinese-llama-alpaca"
    assert model.card.tasks == ("completion", "chat", "embedding", "rerank", "score")
    assert model.template
    assert model.template.render([{"role": "user", "content": "Hi"}]).endswith("### Instruction:\nHi\n\n### Response: ")


def test_a_context_beyond_the_models_is_refused(directory: Path) -> None:
    with pytest.raises(ConfigError, match="128"):
        load(settings(directory, context=129))


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="nothing"):
        load(settings(tmp_path / "nothing"))
