"""The committed embeddings are what transformers computes today."""

import numpy as np

from references import embeddings


def test_tiny_models():
    made = embeddings.make_tiny()
    with np.load(embeddings.FILE) as committed:
        assert set(committed) == {*made, "real"}
        for name, values in made.items():
            np.testing.assert_allclose(committed[name], values, rtol=0, atol=1e-5)


def test_the_real_model(smollm2_path):
    with np.load(embeddings.FILE) as committed:
        np.testing.assert_allclose(committed["real"], embeddings.make_real(smollm2_path), rtol=0, atol=1e-4)
