from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arriero.errors import UnsupportedModel
from arriero.models.architecture import DecoderConfig
from arriero.models.decoders.rope import inverse_frequencies, rope_scaling

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_unscaled_frequencies(config: DecoderConfig) -> None:
    np.testing.assert_allclose(inverse_frequencies(config), [1, 0.1, 0.01, 0.001], rtol=1e-6)
    assert inverse_frequencies(config).dtype == np.float32


def test_linear_scaling_divides_all(config: DecoderConfig) -> None:
    scaled = replace(config, rope_scaling={"rope_type": "linear", "factor": 4.0})
    np.testing.assert_allclose(inverse_frequencies(scaled), inverse_frequencies(config) / 4, rtol=1e-6)


def test_factors_divide_each(config: DecoderConfig) -> None:
    scaled = replace(config, rope_scaling={"rope_type": "factors", "factors": (1.0, 2.0, 4.0, 8.0)})
    np.testing.assert_allclose(inverse_frequencies(scaled), [1, 0.05, 0.0025, 0.000125], rtol=1e-6)


def test_llama3_scaling_follows_the_wavelengths(config: DecoderConfig) -> None:
    """The three cases of Llama 3.1's reference code, decided by wavelength, at Llama 3.1's own sizes."""
    plain = replace(config, head_dim=128, rope_theta=500000.0)
    expected = []
    for frequency in inverse_frequencies(plain).tolist():
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4.0:
            expected.append(frequency)
        elif wavelength > 8192 / 1.0:
            expected.append(frequency / 8.0)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append((1 - smooth) * frequency / 8.0 + smooth * frequency)
    result = inverse_frequencies(replace(plain, rope_scaling=LLAMA3))
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    ratios = inverse_frequencies(plain) / result
    assert ratios[0] == pytest.approx(1)
    assert ratios[-1] == pytest.approx(8)
    assert any(1.1 < ratio < 7.9 for ratio in ratios)


def test_scaling_is_reduced_to_what_is_computed() -> None:
    source = Path("config.json")
    assert rope_scaling(source, {}) is None
    assert rope_scaling(source, {"type": "default", "rope_theta": 1e4}) is None
    assert rope_scaling(source, {**LLAMA3, "rope_theta": 5e5}) == LLAMA3


def test_unknown_scaling_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json: .*'mrope'.*llama3"):
        rope_scaling(Path("config.json"), {"rope_type": "mrope"})
