"""The catalog's all-MiniLM-L6-v2, against sentence-transformers."""

import numpy as np
import pytest

from arriero.models.encoders.encoder import open_encoder
from arriero.models.tokenizers.tokenizer import load_tokenizer
from arriero.runners.onnx import load_encoder
from references import minilm
from references.tokenizer_strings import strings


@pytest.fixture(scope="module")
def reference():
    with np.load(minilm.FILE) as file:
        return dict(file)


@pytest.fixture(scope="module")
def inputs(minilm_path):
    tokenizer, context = load_tokenizer(minilm_path), open_encoder(minilm_path).context
    assert context == 256
    return [tokenizer.encode_within(text, context) for text in minilm.texts()]


def cosine_distances(vectors, reference):
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    return 1 - (vectors * reference).sum(1) / lengths


def test_ids_are_those_of_transformers(minilm_path, reference):
    tokenizer = load_tokenizer(minilm_path)
    expected = np.split(reference["ids"], np.cumsum(reference["lengths"])[:-1])
    for text, ids in zip(strings(), expected, strict=True):
        assert tokenizer.encode(text) == ids.tolist(), text


@pytest.mark.parametrize(("weights", "farthest", "mean"), [("fp32", 1e-6, 1e-6), ("int8", 0.015, 0.004)])
def test_vectors_are_those_of_sentence_transformers(
    weights, farthest, mean, minilm_path, inputs, reference, conversions
):
    encoder = load_encoder(open_encoder(minilm_path), weights=weights, threads=2, cache=conversions)
    vectors = encoder.encode(inputs, [len(tokens) for tokens in inputs])
    distances = cosine_distances(vectors, reference["vectors"].astype(np.float32))
    print(f"\n{weights}: cosine distance to fp32 at most {distances.max():.2g}, {distances.mean():.2g} in the mean")
    assert distances.max() < farthest
    assert distances.mean() < mean
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    some = range(0, len(inputs), 7)
    alone = np.concatenate([encoder.encode([inputs[index]], [len(inputs[index])]) for index in some])
    np.testing.assert_allclose(alone, vectors[list(some)], rtol=0, atol=0 if weights == "int8" else 1e-6)
    encoder.close()
