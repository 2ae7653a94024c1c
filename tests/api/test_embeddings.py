"""Vectors and scores over HTTP. The scripted model's vectors are made up, but they are those of an engine."""

import asyncio
import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openai.types import CreateEmbeddingResponse

from api.tiny import END, letter, tiny_model
from arriero.api.application import application
from arriero.api.schemas import Embeddings, Reranking, Scores
from arriero.core import EncodingRequest
from arriero.pool import Pool
from references.tiny_models import CASES

TEXTS = ["A mule.", "Something else", "x", "A mule. " * 20]


async def embed(served: Any, input: Any, **body: Any) -> Any:
    answer = await served.post("/v1/embeddings", input=input, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def vectors(body: Any) -> np.ndarray:
    assert [each["index"] for each in body["data"]] == list(range(len(body["data"])))
    return np.array([each["embedding"] for each in body["data"]], np.float32)


async def test_one_text(served: Any) -> None:
    body = await embed(served, "Hello")
    CreateEmbeddingResponse.model_validate(body, strict=True)
    Embeddings.model_validate(body, strict=True)
    assert list(body) == ["object", "data", "model", "usage"]
    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert vectors(body).shape == (1, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors(body)), 1, rtol=1e-6)


async def test_every_kind_of_input_gives_the_same(served: Any) -> None:
    ids = [served.model.tokenizer.encode(text) for text in TEXTS]
    together = vectors(await embed(served, TEXTS))
    np.testing.assert_array_equal(vectors(await embed(served, ids)), together)
    for text, tokens, vector in zip(TEXTS, ids, together, strict=True):
        for alone in (text, tokens, [text]):
            np.testing.assert_allclose(vectors(await embed(served, alone))[0], vector, atol=1e-6)
    assert len(np.unique(together, axis=0)) == len(TEXTS)


async def test_numbers_in_base64_are_the_numbers(served: Any) -> None:
    plain, coded = await embed(served, TEXTS), await embed(served, TEXTS, encoding_format="base64")
    for number, each in zip(plain["data"], coded["data"], strict=True):
        decoded = np.frombuffer(base64.b64decode(each["embedding"]), "<f4")
        np.testing.assert_array_equal(decoded, np.array(number["embedding"], np.float32))


async def test_fewer_dimensions_have_length_one_too(served: Any) -> None:
    whole, cut = vectors(await embed(served, TEXTS)), vectors(await embed(served, TEXTS, dimensions=5))
    assert cut.shape == (len(TEXTS), 5)
    np.testing.assert_allclose(cut, whole[:, :5] / np.linalg.norm(whole[:, :5], axis=1, keepdims=True), atol=1e-6)
    assert vectors(await embed(served, "x", dimensions=16)).shape == (1, 16)


async def test_2048_inputs_in_one_call(served: Any) -> None:
    texts = [f"Text {index}" for index in range(2048)]
    body = await embed(served, texts)
    np.testing.assert_allclose(vectors(body)[1234], vectors(await embed(served, texts[1234]))[0], atol=1e-6)
    assert served.model.engine.stats().running == 0


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "input", "Missing"),
        ({"input": ""}, "input", "input.0"),
        ({"input": []}, "input", "1 to 2048"),
        ({"input": ["a", ""]}, "input", "input.1"),
        ({"input": [[1], []]}, "input", "input.1"),
        ({"input": ["a"] * 2049}, "input", "2049"),
        ({"input": 5}, "input", "array of strings"),
        ({"input": ["a", 5]}, "input", "array of strings"),
        ({"input": [[1], [258]]}, "input", "from 0 to 257"),
        ({"input": [-1]}, "input", "from 0 to 257"),
        ({"input": "a", "dimensions": 0}, "dimensions", ">= 1"),
        ({"input": "a", "dimensions": 17}, "dimensions", "<= 16"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "base64"),
        ({"input": "a", "prompt_name": "query"}, "prompt_name", "has no prompt 'query'"),
        ({"input": "a", "prompt_name": "query", "input_type": "query"}, "prompt_name", "same time"),
        ({"input": "a", "input_type": "poem"}, "input_type", "passage"),
        ({"input": "a", "truncate": 5}, "truncate", "a boolean"),
    ],
)
async def test_what_cannot_be_embedded_is_refused_by_name(served: Any, body: Any, param: str, message: str) -> None:
    answer = await served.post("/v1/embeddings", **body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert message in error["message"]


async def test_an_input_that_is_too_long_is_named_or_cut(serve: Callable[..., Any]) -> None:
    served = await serve(context=20)
    long = "0123456789" * 3
    answer = await served.post("/v1/embeddings", input=["a", "b", long])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "input")
    assert "'input.2' has 30" in error["message"]
    cut = await embed(served, [long, long[:20]], truncate=True)
    assert cut["usage"]["prompt_tokens"] == 40
    tokens = await embed(served, served.model.tokenizer.encode(long), truncate=True)
    for vector in (vectors(cut)[1], vectors(tokens)[0]):
        np.testing.assert_allclose(vector, vectors(cut)[0], atol=1e-6)


async def test_what_has_no_effect_is_named(served: Any) -> None:
    answer = await served.post("/v1/embeddings", input="a", user="me", colour="red", input_type="query")
    assert answer.headers["x-arriero-ignored"] == "user,colour,input_type"


async def test_a_model_may_be_left_out_but_not_unknown(served: Any) -> None:
    assert (await served.client.post("/v1/embeddings", json={"input": "a"})).json()["model"] == "scripted"
    assert (await served.post("/v1/embeddings", input="a", model="gpt-9")).status_code == 404


async def test_many_callers_at_once_beside_answers(serve: Callable[..., Any]) -> None:
    served = await serve(slots=4)
    alone = [vectors(await embed(served, [text, "y" * place])) for place, text in enumerate(TEXTS, 1)]
    answers = [served.complete("Hello " * 30) for _ in range(6)]
    encodings = [embed(served, [text, "y" * place]) for place, text in enumerate(TEXTS, 1)]
    *bodies, _ = await asyncio.gather(*encodings, asyncio.gather(*answers))
    for body, expected in zip(bodies, alone, strict=True):
        np.testing.assert_allclose(vectors(body), expected, atol=1e-6)


async def test_vectors_are_the_model_s(tmp_path: Path) -> None:
    """As the engine gives them, divided by their length."""
    model = tiny_model(tmp_path)
    await model.engine.start()
    try:
        transport = httpx.ASGITransport(application(Pool([model])))
        async with httpx.AsyncClient(transport=transport, base_url="http://arriero") as client:
            tokens = [[3, 1, 4, 1, 5], [9, END, 2, 6]]
            texts = ["".join(letter(token) for token in tokens[0])]
            by_id = (await client.post("/v1/embeddings", json={"model": "tiny", "input": tokens})).json()
            by_text = (await client.post("/v1/embeddings", json={"model": "tiny", "input": texts})).json()
            means = (await model.engine.encode(EncodingRequest(id="e", inputs=tuple(map(tuple, tokens))))).vectors
    finally:
        await model.engine.close()
    assert vectors(by_id).shape == (2, CASES["grouped"].hidden_size)
    np.testing.assert_allclose(vectors(by_text)[0], vectors(by_id)[0], atol=1e-6)
    np.testing.assert_allclose(vectors(by_id), means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-6)


# Comparing


async def test_documents_are_sorted_by_relevance(served: Any) -> None:
    documents = ["zzz", "A mule.", {"text": "A mole."}, "Something else"]
    answer = (await served.post("/v1/rerank", query="A mule.", documents=documents, return_documents=True)).json()
    Reranking.model_validate(answer, strict=True)
    results = answer["results"]
    assert sorted(each["index"] for each in results) == [0, 1, 2, 3]
    assert results[0]["index"] == 1
    assert results[0]["relevance_score"] == pytest.approx(1, abs=1e-6)
    scores = [each["relevance_score"] for each in results]
    assert scores == sorted(scores, reverse=True)
    assert [each["document"]["text"] for each in results if each["index"] == 2] == ["A mole."]
    query, *others = vectors(await embed(served, ["A mule.", "zzz", "A mule.", "A mole.", "Something else"]))
    for each in results:
        assert each["relevance_score"] == pytest.approx(float(others[each["index"]] @ query), abs=1e-6)
    assert answer["usage"] == {"prompt_tokens": 7 + 3 + 7 + 7 + 14, "total_tokens": 38}


async def test_only_the_first_of_them(served: Any) -> None:
    answer = (await served.post("/v1/rerank", query="a", documents=["b", "a", "c"], top_n=1)).json()
    (result,) = answer["results"]
    assert list(result) == ["index", "relevance_score"]
    assert result["index"] == 1


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [("ab", "ab", [(0, 0)]), ("ab", ["ab", "xy"], [(0, 0), (0, 1)]), (["ab", "q"], ["q", "q"], [(0, 0), (1, 1)])],
)
async def test_scores_of_pairs(served: Any, first: Any, second: Any, pairs: Any) -> None:
    answer = (await served.post("/v1/score", text_1=first, text_2=second)).json()
    Scores.model_validate(answer, strict=True)
    firsts, seconds = vectors(await embed(served, first)), vectors(await embed(served, second))
    assert [each["index"] for each in answer["data"]] == list(range(len(pairs)))
    for each, (left, right) in zip(answer["data"], pairs, strict=True):
        assert each["score"] == pytest.approx(float(firsts[left] @ seconds[right]), abs=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("rerank", {"documents": ["a"]}, "query"),
        ("rerank", {"query": "", "documents": ["a"]}, "query"),
        ("rerank", {"query": "a", "documents": []}, "documents"),
        ("rerank", {"query": "a", "documents": [5]}, "documents.0"),
        ("rerank", {"query": "a", "documents": [{"title": "b"}]}, "documents.0.text"),
        ("rerank", {"query": "a", "documents": ["b", ""]}, "documents"),
        ("rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
        ("rerank", {"query": "a", "documents": ["b", "c" * 40_000]}, "documents"),
        ("rerank", {"query": "c" * 40_000, "documents": ["b"]}, "query"),
        ("score", {"text_1": "a"}, "text_2"),
        ("score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
        ("score", {"text_1": "a", "text_2": []}, "text_2"),
        ("score", {"text_1": "a", "text_2": ["c" * 40_000]}, "text_2"),
    ],
)
async def test_what_cannot_be_compared_is_refused_by_name(served: Any, path: str, body: Any, param: str) -> None:
    answer = await served.post(f"/v1/{path}", **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


async def test_a_document_that_is_too_long_may_be_cut(serve: Callable[..., Any]) -> None:
    served = await serve(context=10)
    answer = await served.post("/v1/rerank", query="0123456789", documents=["a", "0123456789abc"], truncate=True)
    assert answer.json()["results"][0] == {"index": 1, "relevance_score": pytest.approx(1, abs=1e-6)}
