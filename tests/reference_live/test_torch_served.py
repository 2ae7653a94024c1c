"""`arriero serve DIR` as a process of its own, asked by openai-python: a decoder and an encoder-decoder on torch."""

import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import openai
import pytest
import torch
import transformers

from reference_live.torch_directories import gpt2_directory, t5_directory

START = 60
"""Seconds that a server has to be ready."""


@contextmanager
def server(directory, *flags):
    """A server of the model in a directory; an openai client, its base URL, and the lines that it logs."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = directory.parent / f"{directory.name}.log"
    command = [sys.executable, "-m", "arriero", "serve", str(directory), "--port", str(port), "--threads", "1", *flags]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START
        while "Serving" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        url = f"http://127.0.0.1:{port}"
        with openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0) as client:
            yield client, url, log
    finally:
        process.terminate()
        assert process.wait(20) == 0


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    directory = gpt2_directory(tmp_path_factory.mktemp("models") / "tiny-gpt2")
    with server(directory, "--slots", "8") as served:
        yield directory, *served


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory):
    directory = t5_directory(tmp_path_factory.mktemp("models") / "tiny-t5")
    with server(directory, "--slots", "8") as served:
        yield directory, *served


@torch.inference_mode()
def generated(directory, ids, **settings):
    """The texts that transformers generates."""
    encodes = transformers.AutoConfig.from_pretrained(directory).is_encoder_decoder
    kind = transformers.AutoModelForSeq2SeqLM if encodes else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(directory)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    rows = model.generate(torch.tensor([ids]), do_sample=False, pad_token_id=0, **settings)
    start = 1 if encodes else len(ids)
    return [tokenizer.decode(row[start:], skip_special_tokens=True) for row in rows]


def encoded(directory, text):
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json")).encode(text)


def streamed(stream):
    texts = {}
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    return texts


def test_the_log_says_which_engine_and_why(decoder):
    *_, log = decoder
    why = "The onnx engine does not know the architecture GPT2LMHeadModel."
    assert f"tiny-gpt2 runs on the torch engine (cpu, fp32). {why}" in " ".join(log.read_text().split())


def test_a_decoder_answers_as_transformers_does(decoder):
    directory, client, *_ = decoder
    wanted = generated(directory, encoded(directory, "Hello there"), max_new_tokens=12)
    settings = {"model": "tiny-gpt2", "prompt": "Hello there", "max_tokens": 12, "temperature": 0}
    answer = client.completions.create(**settings)
    assert answer.choices[0].text == wanted[0]
    assert answer.usage.prompt_tokens == 11
    assert streamed(client.completions.create(**settings, stream=True)) == {0: wanted[0]}


def test_choices_beams_and_probabilities(decoder):
    directory, client, *_ = decoder
    ids = encoded(directory, "Hello")
    wanted = generated(directory, ids, max_new_tokens=8, num_beams=4, num_return_sequences=2)
    settings = {"model": "tiny-gpt2", "prompt": "Hello", "max_tokens": 8}
    beams = client.completions.create(**settings, n=2, temperature=0, extra_body={"num_beams": 4})
    assert [choice.text for choice in beams.choices] == wanted
    drawn = client.completions.create(**settings, n=2, seed=5, logprobs=2, echo=True)
    assert len({choice.text for choice in drawn.choices}) == 2
    assert all(len(choice.logprobs.tokens) == 5 + 8 for choice in drawn.choices)


def test_who_goes_away_frees_the_slot(decoder):
    _, client, url, _ = decoder
    for _ in range(12):  # more than there are slots
        stream = client.completions.create(
            model="tiny-gpt2", prompt="x", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
    deadline = time.monotonic() + 10
    while httpx.get(f"{url}/health").json()["models"]["tiny-gpt2"]["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.completions.create(model="tiny-gpt2", prompt="x", max_tokens=2).choices[0].text is not None


def test_a_chat_to_a_decoder_without_a_template_is_refused(decoder):
    _, client, *_ = decoder
    with pytest.raises(openai.BadRequestError, match="chat template"):
        client.chat.completions.create(model="tiny-gpt2", messages=[{"role": "user", "content": "Hi"}])


PROMPT = "translate: the big cat sat on a mat"


def test_an_encoder_decoder_answers_as_transformers_does(encoder_decoder):
    directory, client, *_ = encoder_decoder
    ids = encoded(directory, PROMPT)
    wanted = generated(directory, ids, max_new_tokens=12)
    settings = {"model": "tiny-t5", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    answer = client.completions.create(**settings)
    assert answer.choices[0].text == wanted[0]
    assert answer.usage.prompt_tokens == len(ids)
    assert streamed(client.completions.create(**settings, stream=True)) == {0: wanted[0]}


def test_its_beams_and_choices(encoder_decoder):
    directory, client, *_ = encoder_decoder
    settings = {"model": "tiny-t5", "prompt": PROMPT, "max_tokens": 8, "n": 2}
    wanted = generated(directory, encoded(directory, PROMPT), max_new_tokens=8, num_beams=4, num_return_sequences=2)
    beams = client.completions.create(**settings, temperature=0, extra_body={"num_beams": 4})
    assert [choice.text for choice in beams.choices] == wanted
    drawn = client.completions.create(**settings, seed=1, logprobs=1)
    assert len({choice.text for choice in drawn.choices}) == 2


def test_a_chat_to_it_is_the_same_as_its_text(encoder_decoder):
    _, client, *_ = encoder_decoder
    settings = {"model": "tiny-t5", "temperature": 0, "max_tokens": 12}
    text = client.completions.create(**settings, prompt=PROMPT)
    chat = client.chat.completions.create(**settings, messages=[{"role": "user", "content": PROMPT}])
    assert chat.choices[0].message.content == text.choices[0].text
    assert chat.usage.prompt_tokens == text.usage.prompt_tokens


def test_its_limits_are_its_own(encoder_decoder):
    _, client, url, _ = encoder_decoder
    model = httpx.get(f"{url}/v1/models/tiny-t5").json()
    assert (model["context_length"], model["card"]["source_context"], model["card"]["engine"]) == (63, 64, "torch")
    with pytest.raises(openai.BadRequestError, match="reads at most 64 tokens"):
        client.completions.create(model="tiny-t5", prompt="cat " * 70)
    with pytest.raises(openai.BadRequestError, match="encoder-decoder"):
        client.completions.create(model="tiny-t5", prompt=PROMPT, echo=True)
