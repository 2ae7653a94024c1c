"""Weights in groups: what is left of them, and where each lies."""

import numpy as np
import pytest

from arriero.runners.native.plan import GROUP
from arriero.runners.native.quantisation import lie_in_groups, pack_groups, pack_rows, quantise_bytes, quantise_nibbles


def restored(integers, scales, lows):
    scales = scales.astype(np.float32)
    lows = -128 * scales if lows is None else lows.astype(np.float32)
    groups = integers.reshape(len(integers), -1, GROUP)
    return (groups * scales[..., None] + lows[..., None]).reshape(integers.shape)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(("quantise", "limit"), [(quantise_nibbles, 0.08), (quantise_bytes, 0.007)])
def test_normal_weights_are_near(quantise, limit, rng):
    weight = rng.standard_normal((40, 192), np.float32)
    assert np.linalg.norm(restored(*quantise(weight)) - weight) < limit * np.linalg.norm(weight)


def test_nibbles_are_nearer_than_even_steps_over_each_range(rng):
    groups = rng.standard_normal((64, 4, GROUP), np.float32)
    low, step = groups.min(2, keepdims=True), np.ptp(groups, axis=2, keepdims=True) / 15
    plain = np.rint((groups - low) / step) * step + low
    weight = groups.reshape(64, -1)
    assert np.linalg.norm(restored(*quantise_nibbles(weight)) - weight) < 0.95 * np.linalg.norm(plain - groups)


def test_weights_of_such_groups_stay_as_they_are(rng):
    """As a Q4_1 file has them: whole ranges of 16 steps."""
    integers = rng.integers(0, 16, (64, 3, GROUP))
    integers[..., 0], integers[..., 1] = 0, 15
    scales, lows = (rng.standard_normal((64, 3)).astype(np.float16).astype(np.float32) for _ in range(2))
    weight = (integers * np.abs(scales)[..., None] + lows[..., None]).astype(np.float32).reshape(64, -1)
    np.testing.assert_array_equal(restored(*quantise_nibbles(weight)), weight)
    assert lie_in_groups(weight)


def test_weights_of_even_steps_around_zero_stay_nearly_as_they_are(rng):
    """As a Q4_0 file has them: few groups use all of 16 steps."""
    integers = np.clip(np.rint(rng.standard_normal((64, 3, GROUP)) * 3), -8, 7)
    integers[..., 0] = -8
    scales = np.abs(rng.standard_normal((64, 3))).astype(np.float16).astype(np.float32)
    weight = (integers * scales[..., None]).astype(np.float32).reshape(64, -1)
    np.testing.assert_allclose(restored(*quantise_nibbles(weight)), weight, atol=1e-2)
    assert lie_in_groups(weight)


def test_normal_weights_do_not_lie_in_groups(rng):
    assert not lie_in_groups(rng.standard_normal((64, 50), np.float32))


@pytest.mark.parametrize("quantise", [quantise_nibbles, quantise_bytes])
@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
def test_equal_weights_are_exact_to_a_half(quantise, value):
    weight = np.full((3, 64), value, np.float32)
    np.testing.assert_allclose(restored(*quantise(weight)), weight, rtol=1e-3)


def test_packed_groups_hold_every_weight_once(rng):
    integers = rng.integers(0, 16, (40, 64)).astype(np.uint8)
    scales, lows = (rng.standard_normal((40, 2)).astype(np.float16) for _ in range(2))
    nibbles, whole = pack_groups(integers, scales, lows), pack_groups(integers, scales, None)
    assert (nibbles.shape, whole.shape) == ((2, 2, 512 + 128), (2, 2, 1024 + 64))
    for out in (0, 15, 16, 33, 39):
        unit, half, lane = out // 32, out % 32 // 16, out % 16
        packed = nibbles[unit, :, :512].reshape(2, 8, 16, 4)[:, :, lane].reshape(-1)
        np.testing.assert_array_equal(packed >> (4 * half) & 15, integers[out])
        packed = whole[unit, :, :1024].reshape(2, 8, 2, 16, 4)[:, :, half, lane].reshape(-1)
        np.testing.assert_array_equal(packed, integers[out])
        for start, parts in ((512, (scales, lows)), (1024, (scales,))):
            source = nibbles if start == 512 else whole
            halves = np.ascontiguousarray(source[unit, :, start:]).view(np.float16).reshape(2, -1, 32)
            for part, values in enumerate(parts):
                np.testing.assert_array_equal(halves[:, part, out % 32], values[out])


def test_packed_rows_hold_every_weight_once():
    integers = np.arange(-120, 120, dtype=np.int8).reshape(40, 6)
    packed = pack_rows(integers)
    assert packed.shape == (2, 2, 2, 16, 4)
    for out in (0, 15, 16, 33, 39):
        unit, half, lane = out // 32, out % 32 // 16, out % 16
        np.testing.assert_array_equal(packed[unit, :, half, lane].reshape(-1)[:6], integers[out])
