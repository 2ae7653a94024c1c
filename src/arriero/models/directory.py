"""A Hugging Face directory as a `Checkpoint`: config.json and one or more safetensors files.

An architecture is one entry of `ARCHITECTURES`. Weights are read one tensor at a time from mapped files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.architecture import DecoderConfig
from arriero.models.json_files import Settings, brief, read_json
from arriero.models.layout import check_config, check_finite, check_tensors, identity
from arriero.models.rope import rope_scaling
from arriero.models.safetensors_files import Weight, open_weights

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_ROWS_AT_ONCE = 4096


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
        weights = open_weights(path)
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
        raise UnsupportedModel(f"{settings.file}: the architecture is {brief(name)}, Arriero runs {known}.")
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


def _tied(config: DecoderConfig, weights: dict[str, Weight]) -> tuple[DecoderConfig, dict[str, Weight]]:
    """Follow transformers where tied embeddings are stored twice: they are one if equal, and not tied if not."""
    if not config.tie_embeddings or _HEAD not in weights:
        return config, weights
    head = weights[_HEAD]
    embedding = weights.get(_EMBEDDING, head)
    if not _equal(head, embedding):
        return replace(config, tie_embeddings=False), weights
    others = {name: weight for name, weight in weights.items() if name != _HEAD}
    return config, {**others, _EMBEDDING: embedding}


def _equal(one: Weight, other: Weight) -> bool:
    if one is other or one.shape != other.shape or not one.shape:
        return one.shape == other.shape
    starts = range(0, one.shape[0], _ROWS_AT_ONCE)
    return all(
        np.array_equal(one.rows(start, start + _ROWS_AT_ONCE), other.rows(start, start + _ROWS_AT_ONCE))
        for start in starts
    )
