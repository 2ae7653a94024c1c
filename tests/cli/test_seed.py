"""The demonstration server's start command, as it was written down, and the commands to try it."""

import dataclasses
import re
from types import SimpleNamespace

import pytest

from clients.test_alpaca_curl import (
    ADVANCED_COMPLETION,
    CONVERSATION,
    EMBEDDING,
    QUICK_CHAT,
    QUICK_COMPLETION,
    run_printed,
)
from directories import write_model, write_tokenizer
from references import lora, sentencepieces

NUM_PIECES = 2200
NUM_NEW = 50


@pytest.fixture
def base(tmp_path):
    """The original model, whose own tokenizer knows fewer tokens than the adapter's."""
    config = dataclasses.replace(lora.CASES["resized"].checkpoint, vocab_size=NUM_PIECES - NUM_NEW)
    return write_tokenizer(write_model(tmp_path / "llama", config), config.vocab_size)


@pytest.fixture
def adapter(tmp_path):
    """As Chinese-LLaMA-Alpaca is published: adapter, its embeddings and head, and a SentencePiece model."""
    directory = lora.write_adapter("resized", tmp_path / "alpaca", vocab_size=NUM_PIECES)
    (directory / "tokenizer.model").write_bytes(sentencepieces.read()["llama"]["model"])
    return directory


@pytest.mark.parametrize("dashes", ["_", "-"])
async def test_base_adapter_and_tokenizer_are_served_as_one_model(launch, base, adapter, tmp_path, dashes):
    places = {"--base_model": base, "--lora_model": adapter, "--tokenizer_path": adapter}
    arguments = [text for flag, place in places.items() for text in (flag.replace("_", dashes), str(place))]
    arguments += [flag.replace("_", dashes) for flag in ("--only_cpu", "--load_in_8bit")]
    arguments += ["--profile", "alpaca", "--port", "0", "--cache", str(tmp_path / "cache"), "--threads", "1"]
    async with launch("serve", *arguments) as process:
        ready = (await process.stdout.readline()).decode()
        if not ready:
            pytest.fail((await process.stderr.read()).decode())
        live = SimpleNamespace(url=re.search(r"http://\S+?(?=/v1)", ready)[0])
        completions = [run_printed(live, command) for command in (QUICK_COMPLETION, ADVANCED_COMPLETION)]
        chats = [run_printed(live, command) for command in (QUICK_CHAT, CONVERSATION)]
        embedding = run_printed(live, EMBEDDING)
        (model,) = run_printed(live, "curl http://localhost:19327/v1/models")["data"]
    assert {answer["model"] for answer in (*completions, *chats, embedding)} == {"chinese-llama-alpaca"}
    for answer in completions:
        assert list(answer["choices"][0]) == ["index", "text"]
    assert [len(answer["choices"]) for answer in chats] == [2, 4]
    assert len(embedding["data"][0]["embedding"]) == 64
    assert (model["id"], model["parent"]) == ("chinese-llama-alpaca", None)
    assert model["card"]["weights"] == "int8"


async def test_the_tokenizer_is_the_adapters_unless_told_otherwise(run, launch, base, adapter, tmp_path):
    arguments = ["--base_model", base, "--lora_model", adapter, "--cache", tmp_path / "cache", "--threads", "1"]
    wrong = await run("serve", *map(str, arguments), "--tokenizer_path", str(base), "--port", "0")
    assert (wrong.status, wrong.stdout) == (1, "")
    (line,) = [line for line in wrong.stderr.splitlines() if line.startswith("arriero:")]
    assert "the tokenizer has 2150 tokens" in line
    assert "(the base model alone: 2150) 2200" in line
    assert "Traceback" not in wrong.stderr
    async with launch("serve", *map(str, arguments), "--port", "0") as process:
        assert (await process.stdout.readline()).startswith(b"Serving llama at http")


def test_base_and_model_together_are_refused(call):
    finished = call("serve", "one", "--base_model", "two", "--port", "0")
    assert finished.status == 1
    assert "give the model once" in finished.stderr
    assert finished.stderr.count("\n") == 1
