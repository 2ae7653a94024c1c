"""Embeddings of decoders against transformers: the mean of the last hidden states, divided by its length."""

import asyncio

import numpy as np
import pytest

from arriero.core import EncodingRequest
from arriero.engine.local import LocalEngine
from arriero.runners.onnx import load_runner
from references import embeddings, tiny_models

TOLERANCE = 1e-3
INT8_DISTANCE = 0.02
"""Cosine distance; what was measured is in benchmarks/RESULTS.md."""


@pytest.fixture
def open_runner(conversions):
    def make(checkpoint, weights, threads=1):
        return load_runner(checkpoint, weights=weights, slots=2, context=512, threads=threads, cache=conversions)

    return make


def encode(runner, inputs, chunk=512):
    """Normalised embeddings; the runner is closed then."""

    async def run():
        engine = LocalEngine(lambda: runner, constraints=lambda request: None, chunk=chunk)
        await engine.start()
        try:
            return (await engine.encode(EncodingRequest(id="e", inputs=tuple(map(tuple, inputs))))).vectors
        finally:
            await engine.close()

    means = asyncio.run(run())
    return means / np.linalg.norm(means, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def reference():
    with np.load(embeddings.FILE) as file:
        return dict(file)


@pytest.mark.parametrize("chunk", [512, 37])
@pytest.mark.parametrize("case", tiny_models.CASES)
def test_tiny_models(case, chunk, reference, open_runner):
    config = tiny_models.CASES[case]
    checkpoint = tiny_models.random_checkpoint(config)
    runner = open_runner(checkpoint, "fp32")
    vectors = encode(runner, tiny_models.prompts(config), chunk)
    np.testing.assert_allclose(vectors, reference[case], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ["grouped", "both_biases_tied", "odd_sizes"])
def test_tiny_models_in_int8_are_in_the_same_coordinates(case, reference, open_runner):
    config = tiny_models.CASES[case]
    checkpoint = tiny_models.random_checkpoint(config)
    runner = open_runner(checkpoint, "int8")
    vectors = encode(runner, tiny_models.prompts(config))
    assert np.all((vectors * reference[case]).sum(axis=1) > 0.99)


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_the_real_model(weights, reference, real_checkpoint, open_runner, report):
    runner = open_runner(real_checkpoint, weights, threads=2)
    vectors = encode(runner, embeddings.real_inputs(), chunk=100)
    difference = float(np.abs(vectors - reference["real"]).max())
    distances = 1 - (vectors.astype(np.float64) * reference["real"]).sum(axis=1)
    report(
        f"{weights}: largest difference {difference:.6f}, "
        f"cosine distance {distances.mean():.2e} in the mean, {distances.max():.2e} at most"
    )
    if weights == "fp32":
        assert difference < TOLERANCE
    assert distances.max() < INT8_DISTANCE
