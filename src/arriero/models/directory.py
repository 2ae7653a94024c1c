"""A Hugging Face directory as a `Checkpoint`: config.json and one or more safetensors files.

An architecture is one entry of `ARCHITECTURES`. Weights are read one tensor at a time from mapped files.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.architecture import DecoderConfig
from arriero.models.layout import check_config, check_finite, check_tensors, identity
from arriero.models.rope import rope_scaling

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# safetensors hands out bfloat16 only where numpy knows the type.
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_ROWS_AT_ONCE = 4096
_LARGEST = sys.float_info.max


class DirectoryCheckpoint:
    """Weights and configuration of one directory; raises `ModelLoadError` if it is not a whole, supported model."""

    path: Path
    config: DecoderConfig
    identity: str

    def __init__(self, path: Path) -> None:
        self.path = path
        config_file = path / "config.json"
        settings = Settings(config_file, read_json(config_file))
        config = check_config(config_file, _architecture(settings)(settings))
        weights = _open_weights(path)
        files = sorted({weight.file for weight in weights.values()})
        self.config, self._weights = _tied(config, weights)
        check_tensors(path, self.config, {name: weight.shape for name, weight in self._weights.items()})
        self.identity = identity([config_file, *files], self.config)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """See `Checkpoint.tensor`."""
        weight = self._weights.get(name)
        if weight is None:
            raise ModelLoadError(f"{self.path}: has no tensor {name}.")
        return check_finite(weight.file, weight.name, weight.rows(0, weight.shape[0]))

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    @property
    def source_format(self) -> str:
        """The type that most of the weights are stored in, e.g. `BF16`."""
        counts: Counter[str] = Counter()
        for weight in self._weights.values():
            counts[weight.dtype] += math.prod(weight.shape)
        return counts.most_common(1)[0][0]


@dataclass(frozen=True, slots=True)
class Settings:
    """What config.json says, type-checked as it is taken; None and absent are the same."""

    file: Path
    values: Mapping[str, Any]

    def integer(self, name: str, default: int | None = None) -> int:
        """The named integer; `ModelLoadError` when it is something else, or absent without a default."""
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) is not int:
            raise self.unexpected(name, "an integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """The named number as float."""
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
            raise self.unexpected(name, "a number")
        return float(value)

    def boolean(self, name: str) -> bool:
        """The named switch, off when absent."""
        value = self.values.get(name)
        if value not in (None, False, True):
            raise self.unexpected(name, "true or false")
        return bool(value)

    def neutral(self, name: str, *allowed: Any) -> None:
        """Raise unless the named setting is absent or one of the values that change nothing."""
        value = self.values.get(name)
        if value is not None and value not in allowed:
            raise UnsupportedModel(
                f"{self.file}: {name} is {_brief(value)}, which asks for something that Arriero does not compute."
            )

    def unexpected(self, name: str, expected: str) -> ModelLoadError:
        """The error for a setting of the wrong type."""
        return ModelLoadError(f"{self.file}: {name} is {_brief(self.values.get(name))}, expected {expected}.")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file; raises `ModelLoadError` when it is missing or something else."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise ModelLoadError(f"{file}: cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{file}: is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{file}: holds {type(content).__name__}, expected a JSON object.")
    return content


def _llama(settings: Settings) -> DecoderConfig:
    """Defaults are those of transformers' LlamaConfig; sizes have none, a file without them is damaged."""
    settings.neutral("hidden_act", "silu", "swish")
    settings.neutral("rope_interleaved", False)
    num_heads = settings.integer("num_attention_heads")
    hidden_size = settings.integer("hidden_size")
    rope_theta, scaling = _rope(settings)
    return DecoderConfig(
        family="llama",
        num_layers=settings.integer("num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=settings.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=settings.integer("num_key_value_heads", num_heads),
        head_dim=settings.integer("head_dim", hidden_size // max(num_heads, 1)),
        vocab_size=settings.integer("vocab_size"),
        context=settings.integer("max_position_embeddings", 2048),
        norm_epsilon=settings.number("rms_norm_eps", 1e-6),
        rope_theta=rope_theta,
        rope_scaling=scaling,
        tie_embeddings=settings.boolean("tie_word_embeddings"),
        attention_bias=settings.boolean("attention_bias"),
        mlp_bias=settings.boolean("mlp_bias"),
    )


ARCHITECTURES: Mapping[str, Callable[[Settings], DecoderConfig]] = {"LlamaForCausalLM": _llama}


def _architecture(settings: Settings) -> Callable[[Settings], DecoderConfig]:
    settings.neutral("quantization_config")
    listed = settings.values.get("architectures")
    name = listed[0] if isinstance(listed, list) and len(listed) == 1 else listed
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModel(f"{settings.file}: the architecture is {_brief(name)}, Arriero runs {known}.")
    return ARCHITECTURES[name]


def _rope(settings: Settings) -> tuple[float, Mapping[str, Any] | None]:
    """Base and scaling, from `rope_parameters` or from the older `rope_theta` and `rope_scaling`."""
    parameters = settings.values.get("rope_scaling") or settings.values.get("rope_parameters") or {}
    if not isinstance(parameters, dict):
        raise settings.unexpected("rope_parameters", "a JSON object")
    # What the object leaves out stands beside it, or is the context the model was trained for.
    outer = {name: settings.values.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    outer["original_max_position_embeddings"] = settings.integer("max_position_embeddings", 2048)
    merged = Settings(settings.file, {**outer, **parameters})
    merged.neutral("partial_rotary_factor", 1, 1.0)
    return merged.number("rope_theta", 10000.0), rope_scaling(settings.file, merged.values)


@dataclass(frozen=True, slots=True)
class _Weight:
    """One tensor of one safetensors file, not read yet."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    slice: Any

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        try:
            return np.asarray(self.slice[start : min(stop, self.shape[0])], dtype=np.float32)
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"{self.file}: tensor {self.name} cannot be read: {error}.") from error


def _open_weights(path: Path) -> dict[str, _Weight]:
    if (path / _SINGLE).exists():
        return _open_file(path / _SINGLE)
    if not (path / _INDEX).exists():
        raise ModelLoadError(f"{path}: has neither {_SINGLE} nor {_INDEX}; other weight files are not read.")
    listed = read_json(path / _INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(_is_plain_name(file) for file in listed.values()):
        raise ModelLoadError(f"{path / _INDEX}: weight_map does not map tensor names to files beside it.")
    weights: dict[str, _Weight] = {}
    for file in sorted(set(listed.values())):
        for name, weight in _open_file(path / file).items():
            if name in weights:
                raise ModelLoadError(f"{path / file}: tensor {name} is also in {weights[name].file.name}.")
            weights[name] = weight
    for name, file in listed.items():
        if name not in weights or weights[name].file.name != file:
            raise ModelLoadError(f"{path / file}: tensor {name} is missing, though {_INDEX} lists it there.")
    return weights


def _is_plain_name(file: Any) -> bool:
    return isinstance(file, str) and bool(file) and Path(file).name == file


def _open_file(file: Path) -> dict[str, _Weight]:
    try:
        handle: Any = safe_open(file, framework="numpy")
        # Old files carry the rotary frequencies, which follow from the configuration.
        names = [name for name in handle.keys() if not name.endswith(".rotary_emb.inv_freq")]  # noqa: SIM118
        return {name: _weight(file, name, handle.get_slice(name)) for name in names}
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{file}: is not a whole safetensors file: {error}.") from error


def _weight(file: Path, name: str, part: Any) -> _Weight:
    dtype, shape = part.get_dtype(), tuple(part.get_shape())
    if dtype not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise ModelLoadError(f"{file}: tensor {name} is stored as {dtype}, Arriero reads {known}.")
    return _Weight(file, name, shape, dtype, part)


def _tied(config: DecoderConfig, weights: dict[str, _Weight]) -> tuple[DecoderConfig, dict[str, _Weight]]:
    """Follow transformers where tied embeddings are stored twice: they are one if equal, and not tied if not."""
    if not config.tie_embeddings or _HEAD not in weights:
        return config, weights
    head = weights[_HEAD]
    embedding = weights.get(_EMBEDDING, head)
    if not _equal(head, embedding):
        return replace(config, tie_embeddings=False), weights
    others = {name: weight for name, weight in weights.items() if name != _HEAD}
    return config, {**others, _EMBEDDING: embedding}


def _equal(one: _Weight, other: _Weight) -> bool:
    if one is other or one.shape != other.shape or not one.shape:
        return one.shape == other.shape
    starts = range(0, one.shape[0], _ROWS_AT_ONCE)
    return all(
        np.array_equal(one.rows(start, start + _ROWS_AT_ONCE), other.rows(start, start + _ROWS_AT_ONCE))
        for start in starts
    )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
