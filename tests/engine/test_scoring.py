import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arriero.engine.scoring import score, score_all

values = st.lists(st.one_of(st.integers(-5, 5).map(float), st.floats(-80, 80, width=32)), min_size=1, max_size=300)


@given(values, st.integers(0, 20), st.data())
def test_scores_are_the_log_softmax(logits, num_top, data):
    """Of equally probable tokens the smaller id comes first."""
    token = data.draw(st.integers(0, len(logits) - 1))
    got = score(np.array(logits, dtype=np.float32), token, num_top)
    whole = max(logits) + math.log(math.fsum(math.exp(value - max(logits)) for value in logits))
    assert got.value == pytest.approx(logits[token] - whole, abs=1e-5)
    best = sorted(range(len(logits)), key=lambda id: (-logits[id], id))[:num_top]
    assert [id for id, _ in got.top] == best
    assert [value for _, value in got.top] == pytest.approx([logits[id] - whole for id in best], abs=1e-5)


def test_several_tokens_share_what_is_most_probable():
    row = np.log(np.array([0.5, 0.25, 0.25], dtype=np.float32))
    first, second = score_all(row, [2, 0], 2)
    assert (first.value, second.value) == pytest.approx((math.log(0.25), math.log(0.5)))
    assert first.top == second.top
    assert [id for id, _ in first.top] == [0, 1]


def test_a_sequence_s_scores_sum_to_its_likelihood():
    """Over all pairs of tokens the probabilities sum to 1."""
    rows = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32) * 3
    total = sum(
        math.exp(score(rows[4], first, 0).value + score(rows[first], second, 0).value)
        for first in range(4)
        for second in range(4)
    )
    assert total == pytest.approx(1)
