"""A GGUF file as a `Checkpoint`: metadata becomes a `DecoderConfig`, tensors get their Hugging Face names.

`arriero.models.decoders.gguf_families` says what each architecture's files mean. Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.architecture import DecoderConfig
from arriero.models.decoders.gguf_families import (
    ARCHITECTURES,
    FIELDS,
    NAMES,
    NEUTRAL,
    UNDERSTOOD,
    Architecture,
    Metadata,
    brief,
)
from arriero.models.decoders.layout import check_config, check_tensors, identity, tensor_shapes
from arriero.models.decoders.rope import rope_scaling
from arriero.models.files.gguf_file import GGUFFile, open_gguf

_LAYER = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")
_FACTORS, _SHORT_FACTORS = "rope_freqs.weight", "rope_factors_short.weight"
_ROPE_FACTORS = (_FACTORS, _SHORT_FACTORS, "rope_factors_long.weight")


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a tensor lies: `count` rows of a tensor of the file, which may hold several."""

    name: str
    first: int
    count: int
    num_heads: int | None
    """Heads whose rows are to be put in order."""


def _unpermute(num_heads: int, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of a head from llama.cpp's order (pairs adjacent) to Hugging Face's (first halves, second halves)."""
    pairs = values.reshape(num_heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


class GGUFCheckpoint:
    """Weights and configuration of one GGUF file; raises `ModelLoadError` if it is not a whole, supported model."""

    file: GGUFFile
    config: DecoderConfig
    identity: str

    def __init__(self, path: Path) -> None:
        self.file = open_gguf(path)
        architecture = _architecture(self.file)
        self.config = _config(self.file, architecture)
        self._sources = _sources(self.file, architecture, self.config)
        shapes = {
            name: (source.count, *self.file.tensors[source.name].shape[1:]) for name, source in self._sources.items()
        }
        check_tensors(path, self.config, shapes)
        self.identity = identity([path], self.config)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """See `Checkpoint.tensor`; quantised tensors are decoded, one at a time."""
        source = self._sources.get(name)
        if source is None:
            raise ModelLoadError(f"{self.file.path}: has no tensor {name}.")
        values = self.file.tensor(source.name)[source.first : source.first + source.count]
        return values if source.num_heads is None else _unpermute(source.num_heads, values)

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    @property
    def source_format(self) -> str:
        """The type that most of the weights are stored in, e.g. `Q4_1`."""
        counts: Counter[str] = Counter()
        for info in self.file.tensors.values():
            counts[info.type.name] += math.prod(info.shape)
        return counts.most_common(1)[0][0]


def _architecture(file: GGUFFile) -> Architecture:
    if file.fields.get("general.type", "model") != "model":
        raise ModelLoadError(f"{file.path}: is a GGUF file of type {file.fields['general.type']!r}, expected a model.")
    if file.fields.get("split.count", 0) not in (0, 1):
        raise ModelLoadError(f"{file.path}: is one of {file.fields['split.count']} parts; merge them into one file.")
    name = file.fields.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModel(f"{file.path}: the architecture is {name!r}, Arriero reads {known} from GGUF files.")
    return ARCHITECTURES[name]


def _sources(file: GGUFFile, architecture: Architecture, config: DecoderConfig) -> dict[str, _Source]:
    """From every tensor's Hugging Face name to where it lies."""
    rows = {name: shape[0] for name, shape in tensor_shapes(replace(config, num_layers=1))}
    sources = {}
    for name, info in file.tensors.items():
        layer = _LAYER.fullmatch(name)
        modules = _modules(architecture, layer[2]) if layer else ()
        if layer is None or not modules:
            if name in NAMES:
                sources[NAMES[name]] = _Source(name, 0, math.prod(info.shape[:1]), None)
            elif name not in _ROPE_FACTORS:
                raise ModelLoadError(f"{file.path}: tensor {name} has no place in a {architecture.family} model.")
            continue
        first, num_rows = 0, math.prod(info.shape[:1])
        for module in modules:
            whole = f"model.layers.{layer[1]}.{module}.{layer[3]}"
            # A tensor that is stored by itself is checked as it is; parts of one have the rows that they must have.
            count = num_rows if len(modules) == 1 else rows.get(f"model.layers.0.{module}.{layer[3]}", 0)
            sources[whole] = _Source(name, first, count, _permuted_heads(architecture, module, config))
            first += count
        if first != num_rows:
            raise ModelLoadError(
                f"{file.path}: tensor {name} has shape {list(info.shape)}, the configuration implies {first} rows."
            )
    return sources


def _modules(architecture: Architecture, module: str) -> tuple[str, ...]:
    """What a module of a layer is called in Hugging Face's layout; several when it is stored as one."""
    if module in architecture.fused:
        return architecture.fused[module]
    return (architecture.layer_modules[module],) if module in architecture.layer_modules else ()


def _permuted_heads(architecture: Architecture, module: str, config: DecoderConfig) -> int | None:
    heads = {"self_attn.q_proj": config.num_heads, "self_attn.k_proj": config.num_kv_heads}
    return heads.get(module) if architecture.permuted else None


def _config(file: GGUFFile, architecture: Architecture) -> DecoderConfig:
    metadata = Metadata(file)
    _refuse_unknown_fields(metadata, architecture)
    numbers: dict[str, Any] = {
        name: metadata.number(key, float if name == "norm_epsilon" else int) for name, key in FIELDS.items()
    }
    num_heads = max(numbers["num_heads"], 1)
    head_dim = metadata.number("attention.key_length", int, numbers["hidden_size"] // num_heads)
    turned = metadata.number("rope.dimension_count", int, head_dim)
    for key in ("attention.value_length", *(() if architecture.partial_rotary else ("rope.dimension_count",))):
        if metadata.number(key, int, head_dim) != head_dim:
            raise ModelLoadError(
                f"{file.path}: {metadata.prefix}{key} is {metadata.fields[key]}, expected the head size {head_dim}."
            )
    scaling = _rope_scaling(file, metadata, turned)
    if _SHORT_FACTORS in file.tensors:
        # The long factors apply to whole sequences beyond the original context; see `arriero.models.decoders.rope`.
        original = metadata.number("rope.scaling.original_context_length", int)
        numbers["context"] = min(numbers["context"], original)
    config = DecoderConfig(
        family=architecture.family,
        **numbers,
        num_kv_heads=metadata.number("attention.head_count_kv", int, numbers["num_heads"]),
        head_dim=head_dim,
        vocab_size=_vocab_size(file, metadata),
        rope_theta=metadata.number("rope.freq_base", float, 10000.0),
        rope_scaling=scaling,
        rotary_dim=None if turned == head_dim else turned,
        tie_embeddings="output.weight" not in file.tensors,
        attention_bias=any(f"blk.0.{module}.bias" in file.tensors for module in ("attn_q", "attn_qkv")),
        output_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_up.bias" in file.tensors,
        **architecture.switches(metadata),
    )
    return check_config(file.path, config)


def _refuse_unknown_fields(metadata: Metadata, architecture: Architecture) -> None:
    known = architecture.understood.union(UNDERSTOOD, FIELDS.values())
    for key, value in metadata.fields.items():
        if key in known or (key in NEUTRAL and NEUTRAL[key] == value):
            continue
        raise UnsupportedModel(
            f"{metadata.path}: {metadata.prefix}{key} is {brief(value)}, which asks for something "
            f"that Arriero does not compute."
        )


def _vocab_size(file: GGUFFile, metadata: Metadata) -> int:
    tokens = file.fields.get("tokenizer.ggml.tokens")
    size: int = metadata.number("vocab_size", int, len(tokens) if isinstance(tokens, list) else None)
    return size


def _rope_scaling(file: GGUFFile, metadata: Metadata, rotary_dim: int) -> Mapping[str, Any] | None:
    factor = metadata.fields.get("rope.scaling.factor", 1.0)
    # A factor without a type is linear scaling, as in llama.cpp.
    kind = metadata.fields.get("rope.scaling.type", "none" if factor in (0.0, 1.0) else "linear")
    factors = next((name for name in (_FACTORS, _SHORT_FACTORS) if name in file.tensors), None)
    if kind not in ("none", "linear") and not (kind == "longrope" and factors == _SHORT_FACTORS):
        raise UnsupportedModel(f"{file.path}: the rope scaling is of type {kind!r}, Arriero computes none and linear.")
    if factors != _SHORT_FACTORS and metadata.number("rope.scaling.attn_factor", float, 1.0) != 1:
        raise UnsupportedModel(f"{file.path}: scales attention by a factor, which is not computed.")
    if factors is None:
        return rope_scaling(file.path, {"rope_type": kind, "factor": factor})
    if kind == "linear":
        raise ModelLoadError(f"{file.path}: has both {factors} and {kind} rope scaling, expected one of them.")
    values = file.tensor(factors)
    if values.shape != (rotary_dim // 2,) or not (values > 0).all():
        raise ModelLoadError(
            f"{file.path}: tensor {factors} has shape {list(values.shape)}, "
            f"expected [{rotary_dim // 2}] positive factors."
        )
    scaling = {"rope_type": "factors", "factors": tuple(values.tolist())}
    if factors == _SHORT_FACTORS:
        scaling["attention_factor"] = metadata.number("rope.scaling.attn_factor", float, 1.0)
    return scaling
