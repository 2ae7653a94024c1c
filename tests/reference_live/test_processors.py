import json

import numpy as np

from references import processors


def test_the_committed_rows_are_those_of_transformers_today():
    committed, made = json.loads(processors.FILE.read_text()), processors.make()
    assert made["sequences"] == committed["sequences"]
    for now, then in zip(made["cases"], committed["cases"], strict=True):
        assert now["parameters"] == then["parameters"]
        for row, expected in zip(now["rows"], then["rows"], strict=True):
            np.testing.assert_allclose(np.array(row, float), np.array(expected, float), rtol=1e-4)
