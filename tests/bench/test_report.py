import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arriero.bench.report import percentile


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 2.5), (90, 3.7), (100, 4)])
def test_percentiles_are_interpolated(percent, value):
    assert percentile([4, 1, 3, 2], percent) == pytest.approx(value)


def test_nothing_has_no_percentile():
    assert math.isnan(percentile([], 50))


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_lies_between_the_extremes(values, percent):
    assert min(values) <= percentile(values, percent) <= max(values)
