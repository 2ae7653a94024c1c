"""Small random encoders of every family, against what transformers makes of them."""

import numpy as np
import pytest

from arriero.models.encoders.encoder import open_encoder
from arriero.runners.onnx import load_encoder
from references import tiny_encoders

TOLERANCE = 1e-4


def cosine_distances(one, other):
    return 1 - (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.fixture(scope="module", params=tiny_encoders.CASES)
def case(request, tmp_path_factory):
    """A checkpoint, its inputs, the reference, and a directory for conversions."""
    checkpoint = open_encoder(tiny_encoders.write(request.param, tmp_path_factory.mktemp("models") / request.param))
    with np.load(tiny_encoders.FILE) as file:
        return checkpoint, tiny_encoders.inputs(request.param), file[request.param], tmp_path_factory.mktemp("cache")


def test_vectors_are_those_of_transformers(case):
    checkpoint, (inputs, first_segments), reference, cache = case
    encoder = load_encoder(checkpoint, weights="fp32", threads=1, cache=cache)
    vectors = encoder.encode(inputs, first_segments)
    np.testing.assert_allclose(vectors, reference, rtol=0, atol=TOLERANCE)
    assert encoder.info.width == reference.shape[1]
    encoder.close()


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_vectors_do_not_depend_on_company(case, weights):
    checkpoint, (inputs, first_segments), _, cache = case
    encoder = load_encoder(checkpoint, weights=weights, threads=2, cache=cache)
    assert encoder.info.invariant
    together = encoder.encode(inputs, first_segments)
    alone = np.concatenate([encoder.encode([one], [first]) for one, first in zip(inputs, first_segments, strict=True)])
    order = [3, 0, 6, 5, 1, 4, 2]
    mixed = encoder.encode([inputs[i] for i in order], [first_segments[i] for i in order])
    if weights == "int8":
        assert together.tobytes() == alone.tobytes() == mixed[np.argsort(order)].tobytes()
    else:
        np.testing.assert_allclose(alone, together, rtol=0, atol=1e-6)
        np.testing.assert_allclose(mixed[np.argsort(order)], together, rtol=0, atol=1e-6)
    encoder.close()


def test_int8_is_near(case):
    checkpoint, (inputs, first_segments), reference, cache = case
    encoder = load_encoder(checkpoint, weights="int8", threads=1, cache=cache)
    assert cosine_distances(encoder.encode(inputs, first_segments), reference).max() < 0.02
    encoder.close()
