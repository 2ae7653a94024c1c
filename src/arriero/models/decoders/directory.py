"""A Hugging Face directory as a `Checkpoint`: config.json and one or more safetensors files.

`arriero.models.decoders.families` says what each architecture's files mean. Weights are read one tensor at a time from
mapped files; what is stored as one tensor and is several for us is several views of it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from arriero.errors import ModelLoadError
from arriero.models.architecture import DecoderConfig
from arriero.models.decoders.families import Family, family_of
from arriero.models.decoders.layout import FUSED, check_config, check_finite, check_tensors, identity, tensor_shapes
from arriero.models.files.json_files import Settings, read_json
from arriero.models.files.safetensors_files import Weight, open_weights

_LAYER = re.compile(r"(?P<prefix>model\.layers\.\d+\.)(?P<module>\w+\.\w+)\.(?P<kind>weight|bias)")
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
        self._family = family_of(settings)
        config = check_config(config_file, self._family.config(settings))
        weights = _split(_decoder_weights(open_weights(path), self._family), config)
        files = sorted({weight.file for weight in weights.values()})
        self.config, self._weights = _tied(config, weights)
        check_tensors(path, self.config, {name: weight.shape for name, weight in self._weights.items()})
        self.identity = identity([config_file, *files], self.config)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """See `Checkpoint.tensor`."""
        weight = self._weights.get(name)
        if weight is None:
            raise ModelLoadError(f"{self.path}: has no tensor {name}.")
        values = check_finite(weight.file, weight.name, weight.rows(0, weight.shape[0]))
        return values + 1 if self._family.norms_from_one and name.endswith("norm.weight") else values

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    @property
    def source_format(self) -> str:
        """The type that most of the weights are stored in, e.g. `BF16`."""
        counts: Counter[str] = Counter()
        for weight in self._weights.values():
            counts[weight.dtype] += math.prod(weight.shape)
        return counts.most_common(1)[0][0]


def _decoder_weights(weights: dict[str, Weight], family: Family) -> dict[str, Weight]:
    """The weights of the decoder, in a model that may have other parts, under the names of one without."""
    result = {}
    for name, weight in weights.items():
        if name.startswith(family.other_parts):
            continue
        for stored, own in family.prefixes.items():
            if name.startswith(stored):
                name = own + name.removeprefix(stored)
                break
        result[name] = weight
    return result


def _split(weights: dict[str, Weight], config: DecoderConfig) -> dict[str, Weight]:
    """The same weights, those that the family stores as one as the parts they have."""
    rows = {name: shape[0] for name, shape in tensor_shapes(replace(config, num_layers=1))}
    fused = FUSED.get(config.family, {})
    result = {}
    for name, weight in weights.items():
        layer = _LAYER.fullmatch(name)
        if layer is None or layer["module"] not in fused:
            result[name] = weight
            continue
        first = 0
        for part in fused[layer["module"]]:
            count = rows.get(f"model.layers.0.{part}.{layer['kind']}", 0)
            result[f"{layer['prefix']}{part}.{layer['kind']}"] = replace(
                weight, shape=(count, *weight.shape[1:]), first=first
            )
            first += count
        if weight.shape[:1] != (first,):
            raise ModelLoadError(
                f"{weight.file}: tensor {name} has shape {list(weight.shape)}, the configuration implies {first} rows."
            )
    return result


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
