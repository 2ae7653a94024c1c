"""The committed references of the encoders are what transformers and sentence-transformers compute today."""

import numpy as np

from references import minilm, tiny_encoders


def test_tiny_encoders():
    made = tiny_encoders.make()
    with np.load(tiny_encoders.FILE) as committed:
        assert set(committed) == set(made)
        for name, values in made.items():
            np.testing.assert_allclose(committed[name], values, rtol=0, atol=1e-4)


def test_minilm(minilm_path):
    made = minilm.make(minilm_path)
    with np.load(minilm.FILE) as committed:
        assert set(committed) == set(made)
        np.testing.assert_array_equal(committed["ids"], made["ids"])
        np.testing.assert_array_equal(committed["lengths"], made["lengths"])
        np.testing.assert_allclose(committed["vectors"], made["vectors"], rtol=0, atol=1e-3)
