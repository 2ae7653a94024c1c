"""A GGUF file as a `Checkpoint`: metadata becomes a `DecoderConfig`, tensors get their Hugging Face names.

An architecture is one entry of `ARCHITECTURES`. Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.architecture import DecoderConfig
from arriero.models.gguf_file import GGUFFile
from arriero.models.layout import check_config, check_tensors, identity
from arriero.models.rope import rope_scaling

Transform = Callable[[NDArray[np.float32], DecoderConfig], NDArray[np.float32]]

_LAYER = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")
_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How one value of `general.architecture` is read. Metadata keys stand without their `<architecture>.` prefix."""

    family: str
    fields: Mapping[str, str]
    """Required fields of `DecoderConfig`, and the key of each."""
    understood: frozenset[str]
    """Further keys that are read or only inform."""
    neutral: Mapping[str, Any]
    """Keys for something that is not computed here, and the one value with which that makes no difference."""
    names: Mapping[str, str]
    """Whole tensor names in the file, and in Hugging Face's layout."""
    layer_modules: Mapping[str, str]
    """Module names inside a layer, in the file and in Hugging Face's layout."""
    transforms: Mapping[str, Transform]
    """Modules whose tensors are stored in another order than Hugging Face's."""


def _unpermute(num_heads: int, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of a head from llama.cpp's order (pairs adjacent) to Hugging Face's (first halves, second halves)."""
    pairs = values.reshape(num_heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(
        family="llama",
        fields={
            "num_layers": "block_count",
            "hidden_size": "embedding_length",
            "intermediate_size": "feed_forward_length",
            "num_heads": "attention.head_count",
            "context": "context_length",
            "norm_epsilon": "attention.layer_norm_rms_epsilon",
        },
        understood=frozenset(
            {
                "attention.head_count_kv",
                "attention.key_length",
                "attention.value_length",
                "rope.dimension_count",
                "rope.freq_base",
                "rope.scaling.type",
                "rope.scaling.factor",
                "rope.scaling.original_context_length",
                "rope.scaling.finetuned",
                "tensor_data_layout",
                "vocab_size",
            }
        ),
        neutral={
            "attention.causal": True,
            "attention.sliding_window": 0,
            "expert_count": 0,
            "expert_used_count": 0,
            "rope.scale_linear": 1.0,
            "rope.scaling.attn_factor": 1.0,
            "use_parallel_residual": False,
        },
        names={
            "token_embd.weight": "model.embed_tokens.weight",
            "output_norm.weight": "model.norm.weight",
            "output.weight": "lm_head.weight",
        },
        layer_modules={
            "attn_norm": "input_layernorm",
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        },
        transforms={
            "attn_q": lambda values, config: _unpermute(config.num_heads, values),
            "attn_k": lambda values, config: _unpermute(config.num_kv_heads, values),
        },
    ),
}


class GGUFCheckpoint:
    """Weights and configuration of one GGUF file; raises `ModelLoadError` if it is not a whole, supported model."""

    file: GGUFFile
    config: DecoderConfig
    identity: str

    def __init__(self, path: Path) -> None:
        self.file = GGUFFile(path)
        self._architecture = _architecture(self.file)
        self._sources = _sources(self.file, self._architecture)
        self.config = _config(self.file, self._architecture)
        shapes = {name: self.file.tensors[source].shape for name, source in self._sources.items()}
        check_tensors(path, self.config, shapes)
        self.identity = identity([path], self.config)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """See `Checkpoint.tensor`; quantised tensors are decoded, one at a time."""
        source = self._sources.get(name)
        if source is None:
            raise ModelLoadError(f"{self.file.path}: has no tensor {name}.")
        values = self.file.tensor(source)
        layer = _LAYER.fullmatch(source)
        transform = self._architecture.transforms.get(layer[2]) if layer else None
        return transform(values, self.config) if transform else values

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


def _sources(file: GGUFFile, architecture: Architecture) -> dict[str, str]:
    """From every tensor's Hugging Face name to its name in the file."""
    sources = {}
    for source in file.tensors:
        layer = _LAYER.fullmatch(source)
        if layer and layer[2] in architecture.layer_modules:
            sources[f"model.layers.{layer[1]}.{architecture.layer_modules[layer[2]]}.{layer[3]}"] = source
        elif source in architecture.names:
            sources[architecture.names[source]] = source
        elif source != _ROPE_FACTORS:
            raise ModelLoadError(f"{file.path}: tensor {source} has no place in a {architecture.family} model.")
    return sources


class _Metadata:
    """The fields under one architecture's prefix, type-checked as they are taken."""

    def __init__(self, file: GGUFFile) -> None:
        self.path = file.path
        self.prefix = f"{file.fields['general.architecture']}."
        self.fields = {
            key.removeprefix(self.prefix): v for key, v in file.fields.items() if key.startswith(self.prefix)
        }

    def number(self, key: str, kind: type[int] | type[float], default: float | None = None) -> Any:
        value = self.fields.get(key, default)
        if type(value) is not kind:
            raise ModelLoadError(f"{self.path}: {self.prefix}{key} is {_brief(value)}, expected one {kind.__name__}.")
        return value


def _config(file: GGUFFile, architecture: Architecture) -> DecoderConfig:
    metadata = _Metadata(file)
    _refuse_unknown_fields(metadata, architecture)
    numbers: dict[str, Any] = {
        name: metadata.number(key, float if name == "norm_epsilon" else int)
        for name, key in architecture.fields.items()
    }
    num_heads = max(numbers["num_heads"], 1)
    head_dim = metadata.number("attention.key_length", int, numbers["hidden_size"] // num_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if metadata.number(key, int, head_dim) != head_dim:
            raise ModelLoadError(
                f"{file.path}: {metadata.prefix}{key} is {metadata.fields[key]}, expected the head size {head_dim}."
            )
    config = DecoderConfig(
        family=architecture.family,
        **numbers,
        num_kv_heads=metadata.number("attention.head_count_kv", int, numbers["num_heads"]),
        head_dim=head_dim,
        vocab_size=_vocab_size(file, metadata),
        rope_theta=metadata.number("rope.freq_base", float, 10000.0),
        rope_scaling=_rope_scaling(file, metadata, head_dim),
        tie_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        output_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_up.bias" in file.tensors,
    )
    return check_config(file.path, config)


def _refuse_unknown_fields(metadata: _Metadata, architecture: Architecture) -> None:
    known = architecture.understood.union(architecture.fields.values())
    for key, value in metadata.fields.items():
        if key in known or (key in architecture.neutral and architecture.neutral[key] == value):
            continue
        raise UnsupportedModel(
            f"{metadata.path}: {metadata.prefix}{key} is {_brief(value)}, which asks for something "
            f"that Arriero does not compute."
        )


def _vocab_size(file: GGUFFile, metadata: _Metadata) -> int:
    tokens = file.fields.get("tokenizer.ggml.tokens")
    size: int = metadata.number("vocab_size", int, len(tokens) if isinstance(tokens, list) else None)
    return size


def _rope_scaling(file: GGUFFile, metadata: _Metadata, head_dim: int) -> Mapping[str, Any] | None:
    factor = metadata.fields.get("rope.scaling.factor", 1.0)
    # A factor without a type is linear scaling, as in llama.cpp.
    kind = metadata.fields.get("rope.scaling.type", "none" if factor in (0.0, 1.0) else "linear")
    if kind not in ("none", "linear"):
        raise UnsupportedModel(f"{file.path}: the rope scaling is of type {kind!r}, Arriero computes none and linear.")
    scaling = rope_scaling(file.path, {"rope_type": kind, "factor": factor})
    if _ROPE_FACTORS not in file.tensors:
        return scaling
    if scaling is not None:
        raise ModelLoadError(f"{file.path}: has both {_ROPE_FACTORS} and {kind} rope scaling, expected one of them.")
    factors = file.tensor(_ROPE_FACTORS)
    if factors.shape != (head_dim // 2,) or not (factors > 0).all():
        raise ModelLoadError(
            f"{file.path}: tensor {_ROPE_FACTORS} has shape {list(factors.shape)}, "
            f"expected [{head_dim // 2}] positive factors."
        )
    return {"rope_type": "factors", "factors": tuple(factors.tolist())}


def _brief(value: Any) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)
