"""The demonstration server's start command, as it was written down, and its requests."""

import re

import httpx
import pytest

from app.test_adapters import base, write_tokenizer  # noqa: F401  # a fixture
from references import lora


@pytest.fixture
def adapter(tmp_path):
    return write_tokenizer(lora.write_adapter("resized", tmp_path / "adapter"), 307)


@pytest.mark.parametrize("dashes", ["_", "-"])
async def test_base_adapter_and_tokenizer_are_served_as_one_model(launch, base, adapter, tmp_path, dashes):  # noqa: F811
    flags = ["--base_model", base, "--lora_model", adapter, "--tokenizer_path", adapter, "--only_cpu", "--load_in_8bit"]
    flags = [str(flag).replace("_", dashes) if str(flag).startswith("--") else str(flag) for flag in flags]
    others = ["--profile", "alpaca", "--port", "0", "--cache", str(tmp_path / "cache"), "--threads", "1"]
    async with launch("serve", *flags, *others) as process:
        ready = (await process.stdout.readline()).decode()
        if not ready:
            pytest.fail((await process.stderr.read()).decode())
        url = re.search(r"http://\S+?(?=/v1)", ready)[0]
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            bodies = {
                "completions": {"prompt": "Tell me where the capital of China is"},
                "chat/completions": {
                    "messages": [
                        {"role": "user", "message": "Tell me some stories about Hangzhou"},
                        {"role": "assistant", "message": "Sure, do you have any specific preferences?"},
                        {"role": "user", "message": "I am quite fond of West Lake"},
                    ],
                    "repetition_penalty": 1.0,
                },
            }
            answers = {path: (await client.post(f"/v1/{path}", json=body)).json() for path, body in bodies.items()}
            advanced = bodies["completions"] | {"max_tokens": 9, "temperature": 0.7, "num_beams": 4, "top_k": 40}
            beams = (await client.post("/v1/completions", json=advanced)).json()
            card = (await client.get("/v1/models")).json()["data"][0]["card"]
    assert card["weights"] == "int8"
    for answer in (*answers.values(), beams):
        assert answer["model"] == "chinese-llama-alpaca", answer
    assert list(answers["completions"]["choices"][0]) == ["index", "text"]
    said = [choice["message"]["role"] for choice in answers["chat/completions"]["choices"]]
    assert said == ["user", "assistant", "user", "assistant"]


async def test_a_tokenizer_of_another_model_is_one_sentence(run, base, adapter, tmp_path):  # noqa: F811
    wrong = write_tokenizer(tmp_path / "wrong", 306)
    flags = ["--base_model", base, "--lora_model", adapter, "--tokenizer_path", wrong, "--cache", tmp_path / "cache"]
    finished = await run("serve", *map(str, flags), "--port", "0")
    assert finished.status == 1
    assert finished.stdout == ""
    (line,) = [line for line in finished.stderr.splitlines() if line.startswith("arriero:")]
    assert "has 306 tokens" in line
    assert "(the base model alone: 300) 307" in line
    assert "Traceback" not in finished.stderr


def test_base_and_model_together_are_refused(call):
    finished = call("serve", "one", "--base_model", "two", "--port", "0")
    assert finished.status == 1
    assert "give the model once" in finished.stderr
    assert finished.stderr.count("\n") == 1
