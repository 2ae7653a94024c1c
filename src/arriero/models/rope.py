"""Rotary position frequencies, with the scalings that checkpoints ask for.

`DecoderConfig.rope_scaling` is None or one of these mappings (names as in transformers' `rope_parameters`):

    {"rope_type": "linear", "factor": f}
    {"rope_type": "llama3", "factor": f, "low_freq_factor": l, "high_freq_factor": h,
     "original_max_position_embeddings": n}
    {"rope_type": "factors", "factors": (f0, f1, ...)}     one divisor for each pair of a head, from GGUF
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.architecture import DecoderConfig

_PARAMETERS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def rope_scaling(source: Path, parameters: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The scaling in `parameters`, reduced to what is computed; None when there is none.

    Raises `ModelLoadError` naming `source` for a scaling that is not computed here or lacks a number.
    """
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind in ("default", "none"):
        return None
    if not isinstance(kind, str) or kind not in _PARAMETERS:
        known = ", ".join(("default", *_PARAMETERS))
        raise UnsupportedModel(f"{source}: the rope scaling is of type {kind!r}, Arriero computes {known}.")
    numbers = {name: parameters.get(name) for name in _PARAMETERS[kind]}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
            raise ModelLoadError(f"{source}: {kind} rope scaling has {name} = {number!r}, expected a positive number.")
    if kind == "llama3" and not parameters["low_freq_factor"] < parameters["high_freq_factor"]:
        raise ModelLoadError(f"{source}: llama3 rope scaling needs low_freq_factor below high_freq_factor.")
    return {"rope_type": kind, **numbers}


def inverse_frequencies(config: DecoderConfig) -> NDArray[np.float32]:
    """Radians per position for each pair of a head, float32 [head_dim / 2].

    A token at position p has its pair i (elements i and i + head_dim / 2) turned by p * result[i].
    """
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    frequencies = config.rope_theta**-exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies.astype(np.float32)
    if scaling["rope_type"] == "linear":
        frequencies = frequencies / scaling["factor"]
    elif scaling["rope_type"] == "factors":
        frequencies = frequencies / np.asarray(scaling["factors"])
    else:
        frequencies = _llama3(frequencies, scaling)
    return frequencies.astype(np.float32)


def _llama3(frequencies: NDArray[np.float64], scaling: Mapping[str, Any]) -> NDArray[np.float64]:
    """Slow turns are stretched by `factor`, fast ones kept, those between interpolated (Llama 3.1's reference code)."""
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    blended: NDArray[np.float64] = frequencies * (kept + (1 - kept) / scaling["factor"])
    return blended
