"""The committed references of the encoders are what transformers computes today."""

import numpy as np

from references import tiny_encoders


def test_tiny_encoders():
    made = tiny_encoders.make()
    with np.load(tiny_encoders.FILE) as committed:
        assert set(committed) == set(made)
        for name, values in made.items():
            np.testing.assert_allclose(committed[name], values, rtol=0, atol=1e-4)
