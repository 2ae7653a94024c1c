"""Rotary position frequencies, with the scalings that checkpoints ask for.

`DecoderConfig.rope_scaling` is None or one of these mappings (names as in transformers' `rope_parameters`):

    {"rope_type": "linear", "factor": f}
    {"rope_type": "llama3", "factor": f, "low_freq_factor": l, "high_freq_factor": h,
     "original_max_position_embeddings": n}
    {"rope_type": "yarn", "factor": f, "beta_fast": b, "beta_slow": s, "truncate": t, "attention_factor": a,
     "original_max_position_embeddings": n}
    {"rope_type": "factors", "factors": (f0, f1, ...), "attention_factor": a}     a divisor for each pair of a head

Two scalings depend on how long the sequence is. `longrope` has short factors up to the original context and long
ones, for all positions, beyond; `dynamic` has another base at every length beyond it. Neither can be had for some
rows of a batch and positions of a cache, so both are computed within the original context only: `longrope` is then
its short factors, and `dynamic` is no scaling.
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
from arriero.models.files.json_files import is_number

_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("original_max_position_embeddings",),
}
"""Positive numbers that each scaling cannot do without."""


def rope_scaling(source: Path, parameters: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The scaling in `parameters`, reduced to what is computed; None when there is none.

    Raises `UnsupportedModel` naming `source` for a scaling that is not computed here, `ModelLoadError` for one that
    lacks a number.
    """
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind in ("default", "none"):
        return None
    if not isinstance(kind, str) or kind not in _PARAMETERS:
        known = ", ".join(("default", *_PARAMETERS))
        raise UnsupportedModel(f"{source}: the rope scaling is of type {kind!r}, Arriero computes {known}.")
    numbers = {name: parameters.get(name) for name in _PARAMETERS[kind]}
    for name, number in numbers.items():
        if not (is_number(number) and number > 0):
            raise ModelLoadError(f"{source}: {kind} rope scaling has {name} = {number!r}, expected a positive number.")
    if kind == "dynamic":
        if parameters.get("alpha") is not None:
            raise UnsupportedModel(f"{source}: dynamic rope scaling by alpha is not computed.")
        return None
    if kind == "longrope":
        return _longrope(source, parameters)
    if kind == "yarn":
        return _yarn(source, parameters)
    if kind == "llama3" and not parameters["low_freq_factor"] < parameters["high_freq_factor"]:
        raise ModelLoadError(f"{source}: llama3 rope scaling needs low_freq_factor below high_freq_factor.")
    return {"rope_type": kind, **numbers}


def inverse_frequencies(config: DecoderConfig, *, local: bool = False) -> NDArray[np.float32]:
    """Radians per position for each pair of a head, float32 [rotary_dim / 2].

    A token at position p has its pair i (elements i and i + rotary_dim / 2) turned by p * result[i]. `local` asks for
    those of layers with a window.
    """
    size = config.head_dim if config.rotary_dim is None else config.rotary_dim
    exponents = np.arange(0, size, 2) / size
    scaling = config.rope_scaling
    theta = config.rope_theta
    if local and config.local_rope_theta is not None:
        theta, scaling = config.local_rope_theta, None
    frequencies = theta**-exponents
    if scaling is None:
        return frequencies.astype(np.float32)
    if scaling["rope_type"] == "linear":
        frequencies = frequencies / scaling["factor"]
    elif scaling["rope_type"] == "factors":
        frequencies = frequencies / np.asarray(scaling["factors"])
    elif scaling["rope_type"] == "yarn":
        frequencies = frequencies * _yarn_shares(theta, size, scaling)
    else:
        frequencies = _llama3(frequencies, scaling)
    return frequencies.astype(np.float32)


def rotation_scale(config: DecoderConfig, *, local: bool = False) -> float:
    """What sines and cosines are multiplied by, so that attention is as sharp over a stretched context."""
    if config.rope_scaling is None or (local and config.local_rope_theta is not None):
        return 1.0
    return float(config.rope_scaling.get("attention_factor", 1.0))


def _llama3(frequencies: NDArray[np.float64], scaling: Mapping[str, Any]) -> NDArray[np.float64]:
    """Slow turns are stretched by `factor`, fast ones kept, those between interpolated (Llama 3.1's reference code)."""
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    blended: NDArray[np.float64] = frequencies * (kept + (1 - kept) / scaling["factor"])
    return blended


def _yarn_shares(theta: float, size: int, scaling: Mapping[str, Any]) -> NDArray[np.float64]:
    """What each frequency is multiplied by: one over `factor` for slow turns, 1 for fast ones, a ramp between them.

    The ramp runs over the pairs from the one that turns `beta_fast` times in the original context to the one that
    turns `beta_slow` times (Peng et al. 2023, YaRN).
    """

    def pair(turns: float) -> float:
        original = scaling["original_max_position_embeddings"]
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(scaling["beta_fast"]), pair(scaling["beta_slow"])
    if scaling["truncate"]:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    width = last - first or 0.001
    stretched = np.clip((np.arange(size // 2) - first) / width, 0.0, 1.0)
    shares: NDArray[np.float64] = 1 - stretched + stretched / scaling["factor"]
    return shares


def _yarn(source: Path, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    options = {name: parameters.get(name) for name in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")}
    for name, value in options.items():
        if value is not None and not (is_number(value) and value >= 0):
            raise ModelLoadError(f"{source}: yarn rope scaling has {name} = {value!r}, expected a number.")
    factor, truncate = parameters["factor"], parameters.get("truncate")
    if options["mscale"] and options["mscale_all_dim"]:
        inferred = _yarn_magnitude(factor, options["mscale"]) / _yarn_magnitude(factor, options["mscale_all_dim"])
    else:
        inferred = _yarn_magnitude(factor, 1.0)
    return {
        "rope_type": "yarn",
        "factor": factor,
        "beta_fast": options["beta_fast"] or 32.0,
        "beta_slow": options["beta_slow"] or 1.0,
        "truncate": truncate is None or bool(truncate),
        "attention_factor": _attention_factor(source, parameters, inferred),
        "original_max_position_embeddings": parameters["original_max_position_embeddings"],
    }


def _yarn_magnitude(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(source: Path, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """The short factors; their sines and cosines are scaled by how far the context was stretched, all the same."""
    original = parameters["original_max_position_embeddings"]
    stretch = parameters.get("factor") or parameters.get("max_position_embeddings", original) / original
    inferred = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 and original > 1 else 1.0
    factors = parameters.get("short_factor")
    if not isinstance(factors, list) or not all(is_number(factor) and factor > 0 for factor in factors):
        raise ModelLoadError(f"{source}: longrope has no list of positive numbers as its short_factor.")
    return {
        "rope_type": "factors",
        "factors": tuple(map(float, factors)),
        "attention_factor": _attention_factor(source, parameters, inferred),
    }


def _attention_factor(source: Path, parameters: Mapping[str, Any], inferred: float) -> float:
    value = parameters.get("attention_factor")
    value = inferred if value is None else value
    if not is_number(value) or not value > 0:
        raise ModelLoadError(
            f"{source}: the rope scaling has attention_factor = {value!r}, expected a positive number."
        )
    return float(value)
