"""Encoders from a directory to the API: small random ones, whose vectors tests/fidelity holds against transformers."""

import json
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from arriero.app import load
from arriero.app.web import create_app
from arriero.config import Settings
from arriero.errors import ConfigError, UnsupportedModel
from arriero.models.encoders.encoder import open_encoder
from arriero.runners.onnx import load_encoder
from references import tiny_encoders

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", "passage", ":", *(f"w{place}" for place in range(292))]
CLS, SEP = 2, 3


def write(path, case="bert", **about):
    tiny_encoders.write(case, path)
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (path / "tokenizer_config.json").write_text("{}")
    if about:
        (path / "config_sentence_transformers.json").write_text(json.dumps(about))
    return path


def write_scorer(path, activation=None):
    """A cross-encoder with one label."""
    write(path, "bert_scores", **({"activation_fn": activation} if activation else {}))
    config = json.loads((path / "config.json").read_text())
    config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    (path / "config.json").write_text(json.dumps(config))
    tensors = load_file(path / "model.safetensors")
    for kind in ("weight", "bias"):
        tensors[f"classifier.{kind}"] = tensors[f"classifier.{kind}"][:1].copy()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def ids(text):
    return [WORDS.index(word) for word in text.split()]


@asynccontextmanager
async def serving(path, cache, **settings):
    chosen = Settings(model=str(path), cache=cache, threads=1, **settings)
    model = load(chosen)
    await model.engine.start()
    transport = httpx.ASGITransport(create_app(chosen, model))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://arriero") as client:
            yield model, client
    finally:
        await model.engine.close()


async def post(client, path, status=200, **body):
    answer = await client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def encoded(path, cache, inputs, first_segments=None):
    encoder = load_encoder(open_encoder(path), weights="fp32", threads=1, cache=cache)
    vectors = encoder.encode(inputs, first_segments or [len(tokens) for tokens in inputs])
    encoder.close()
    return vectors


def vectors(body):
    return np.array([each["embedding"] for each in body["data"]], np.float32)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


async def test_texts_become_the_encoder_s_vectors(tmp_path):
    path = write(tmp_path / "bert")
    texts = ["w1 w2 w3", "w9", "w4 w5"]
    async with serving(path, tmp_path) as (model, client):
        body = await post(client, "/v1/embeddings", input=texts)
        assert model.card.weights == "fp32"
        assert model.vectors.width == vectors(body).shape[1]
        described = (await client.get("/v1/models")).json()["data"][0]
    expected = encoded(path, tmp_path, [[CLS, *ids(text), SEP] for text in texts])
    np.testing.assert_allclose(vectors(body), expected, atol=1e-5)
    assert not np.allclose(np.linalg.norm(expected, axis=1), 1)  # this one does not normalise
    assert body["usage"]["prompt_tokens"] == 3 + 1 + 2 + 3 * 2
    assert described["capabilities"] == ["embedding", "rerank", "score"]
    assert set(described["supported_parameters"]) == {"embeddings", "rerank", "score"}


async def test_prompts_go_before_texts(tmp_path):
    path = write(tmp_path / "bert", prompts={"query": "query : ", "passage": "passage : "}, default_prompt_name="query")
    async with serving(path, tmp_path) as (_, client):

        async def embed(**body):
            return vectors(await post(client, "/v1/embeddings", input=["w1"], **body))

        default, query, passage = await embed(), await embed(input_type="query"), await embed(input_type="document")
        np.testing.assert_array_equal(await embed(prompt_name="passage"), passage)
        as_ids = vectors(await post(client, "/v1/embeddings", input=[CLS, *ids("w1"), SEP]))
        wrong = await post(client, "/v1/embeddings", 400, input="w1", prompt_name="poem")
        ranked = await post(client, "/v1/rerank", query="w1", documents=["w2", "w1"])
    worded = [[CLS, *ids(text), SEP] for text in ("query : w1", "passage : w1", "w1", "passage : w2")]
    expected = encoded(path, tmp_path, worded)
    np.testing.assert_allclose(default, expected[:1], atol=1e-5)
    np.testing.assert_allclose(query, expected[:1], atol=1e-5)
    np.testing.assert_allclose(passage, expected[1:2], atol=1e-5)
    np.testing.assert_allclose(as_ids, expected[2:3], atol=1e-5)
    assert "'query', 'passage'" in wrong["error"]["message"]
    cosines = unit(expected) @ unit(expected)[0]
    found = {each["index"]: each["relevance_score"] for each in ranked["results"]}
    assert found == pytest.approx({0: cosines[3], 1: cosines[1]}, abs=1e-5)


async def test_too_long_texts_are_refused_or_cut(tmp_path):
    path = write(tmp_path / "bert")
    text = " ".join(["w1"] * 127)
    async with serving(path, tmp_path) as (_, client):
        error = (await post(client, "/v1/embeddings", 400, input=["w1", text]))["error"]
        cut = await post(client, "/v1/embeddings", input=text, truncate=True)
    assert error["param"] == "input"
    assert "'input.1' has 129" in error["message"]
    assert cut["usage"]["prompt_tokens"] == 128
    expected = encoded(path, tmp_path, [[CLS, *ids(" ".join(["w1"] * 126)), SEP]])
    np.testing.assert_allclose(vectors(cut), expected, atol=1e-5)


@pytest.mark.parametrize("activation", [None, "torch.nn.modules.linear.Identity"])
async def test_pairs_become_scores(tmp_path, activation):
    path = write_scorer(tmp_path / "scorer", activation)
    documents = ["w2 w3", "w9", "w1"]
    async with serving(path, tmp_path) as (model, client):
        assert model.card.tasks == ("rerank", "score")
        ranked = await post(client, "/v1/rerank", query="w1 w4", documents=documents)
        scored = await post(client, "/v1/score", text_1="w1 w4", text_2=documents)
        error = (await post(client, "/v1/embeddings", 400, input="w1"))["error"]
        cut = await post(client, "/v1/rerank", query="w1", documents=["w2 " * 300], truncate=True)
        long = (await post(client, "/v1/rerank", 400, query="w1", documents=["w1", "w2 " * 300]))["error"]
    pairs = [[CLS, *ids("w1 w4"), SEP, *ids(text), SEP] for text in documents]
    logits = encoded(path, tmp_path, pairs, [4] * 3)[:, 0]
    expected = logits if activation else 1 / (1 + np.exp(-logits))
    assert [each["score"] for each in scored["data"]] == pytest.approx(expected.tolist(), abs=1e-5)
    assert [each["index"] for each in ranked["results"]] == np.argsort(-expected).tolist()
    assert ranked["results"][0]["relevance_score"] == pytest.approx(expected.max(), abs=1e-5)
    assert ranked["usage"]["prompt_tokens"] == sum(map(len, pairs))
    assert (error["param"], error["code"]) == ("model", "unsupported_task")
    assert "rerank, score" in error["message"]
    assert cut["usage"]["prompt_tokens"] == 128
    assert (long["param"], long["code"]) == ("documents", "context_length_exceeded")


@pytest.mark.parametrize(
    ("path", "body"), [("chat/completions", {"messages": "Hi"}), ("completions", {"prompt": "Hi"})]
)
@pytest.mark.parametrize("profile", ["openai", "alpaca"])
async def test_an_encoder_does_not_talk_and_says_what_it_does(tmp_path, path, body, profile):
    if profile == "openai" and "messages" in body:
        body = {"messages": [{"role": "user", "content": "Hi"}]}
    async with serving(write(tmp_path / "bert"), tmp_path, profile=profile) as (model, client):
        error = (await post(client, f"/v1/{path}", 400, model=model.name, **body))["error"]
    assert error["param"] == "model"
    assert ("chat" if "chat" in path else "completions") in error["message"]
    assert "embedding, rerank, score" in error["message"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": "int4"}, "--weights is int4"),
        ({"engine": "torch"}, "--engine is torch"),
        ({"context": 20}, "--context"),
        ({"gpus": "0"}, "--gpus"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        load(Settings(model=str(write(tmp_path / "bert")), cache=tmp_path, **settings))


def test_a_classifier_of_several_labels_is_refused(tmp_path):
    with pytest.raises(UnsupportedModel, match="3 labels"):
        load(Settings(model=str(write(tmp_path / "scorer", "bert_scores")), cache=tmp_path))
