"""What a checkpoint must contain, whatever container it comes in.

Both containers check their tensors against this when they are opened, so that a wrong file fails at once
and not in the middle of a conversion.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from arriero.errors import ModelLoadError
from arriero.models.architecture import DecoderConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SIZES = (
    "num_layers",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "vocab_size",
    "context",
)
_POSITIVE = (
    "norm_epsilon",
    "rope_theta",
    "local_rope_theta",
    "attention_scale",
    "attention_softcap",
    "logits_softcap",
    "embedding_scale",
    "residual_scale",
    "logits_scale",
)

LARGEST_SIZE = 2**24
"""No model has a dimension, a vocabulary or a context beyond it, and tables of that many rows can still be made."""


FUSED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "phi3": {
        "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    }
}
"""Modules of a layer that a family has as one, their rows one below the other, and the parts they have here."""


def tensor_shapes(config: DecoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that the configuration asks for; linear layers are [out, in]."""
    yield "model.embed_tokens.weight", (config.vocab_size, config.hidden_size)
    for layer in range(config.num_layers):
        for name, shape in _layer_shapes(config):
            yield f"model.layers.{layer}.{name}", shape
    yield "model.norm.weight", (config.hidden_size,)
    if not config.tie_embeddings:
        yield "lm_head.weight", (config.vocab_size, config.hidden_size)


def _layer_shapes(config: DecoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for norm in dataclasses.astuple(config.norms):
        if norm is not None:
            yield f"{norm}.weight", (hidden,)
    if config.qk_norm is not None:
        whole = config.qk_norm == "projection"
        yield "self_attn.q_norm.weight", (queries if whole else config.head_dim,)
        yield "self_attn.k_norm.weight", (keys if whole else config.head_dim,)
    linear = {
        "self_attn.q_proj": ((queries, hidden), config.attention_bias),
        "self_attn.k_proj": ((keys, hidden), config.attention_bias),
        "self_attn.v_proj": ((keys, hidden), config.attention_bias),
        "self_attn.o_proj": ((hidden, queries), config.output_bias),
        "mlp.gate_proj": ((inner, hidden), config.mlp_bias),
        "mlp.up_proj": ((inner, hidden), config.mlp_bias),
        "mlp.down_proj": ((hidden, inner), config.mlp_bias),
    }
    for module, (shape, has_bias) in linear.items():
        yield f"{module}.weight", shape
        if has_bias:
            yield f"{module}.bias", shape[:1]


def check_config(source: Path, config: DecoderConfig) -> DecoderConfig:
    """The configuration itself, if its numbers can belong together; else `ModelLoadError` naming `source`."""
    for name in _SIZES:
        if getattr(config, name) < 1:
            raise ModelLoadError(f"{source}: {name} is {getattr(config, name)}, expected at least 1.")
        if name != "num_layers" and getattr(config, name) > LARGEST_SIZE:  # layers are counted by their tensors
            raise ModelLoadError(f"{source}: {name} is {getattr(config, name)}, expected {LARGEST_SIZE} at most.")
    if config.num_heads % config.num_kv_heads:
        raise ModelLoadError(
            f"{source}: {config.num_heads} attention heads cannot share {config.num_kv_heads} key/value heads evenly."
        )
    rotary_dim = config.head_dim if config.rotary_dim is None else config.rotary_dim
    if rotary_dim % 2 or not 0 < rotary_dim <= config.head_dim:
        raise ModelLoadError(
            f"{source}: the head size is {config.head_dim}, positions turn {rotary_dim}; expected an even number."
        )
    for name in _POSITIVE:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ModelLoadError(f"{source}: {name} is {value}, expected a positive number.")
    scaling = config.rope_scaling or {}
    if len(scaling.get("factors", ())) not in (0, rotary_dim // 2):
        raise ModelLoadError(
            f"{source}: the rope scaling has {len(scaling['factors'])} factors, expected {rotary_dim // 2}."
        )
    if scaling.get("rope_type") == "yarn" and config.rope_theta <= 1:
        raise ModelLoadError(f"{source}: yarn rope scaling needs a rope_theta above 1, not {config.rope_theta}.")
    for window in config.windows:
        if window is not None and window < 1:
            raise ModelLoadError(f"{source}: a sliding window has {window} tokens, expected at least 1.")
    return config


def check_tensors(source: Path, config: DecoderConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `ModelLoadError` unless `shapes` are exactly the tensors that `config` implies.

    A tensor too many is an error as well: leaving out a weight that the model was trained with
    (a normalisation, a bias, an expert) would give wrong answers without a word.
    """
    expected = set()
    for name, shape in tensor_shapes(config):
        if name not in shapes:
            raise ModelLoadError(f"{source}: tensor {name} is missing, expected shape {list(shape)}.")
        if shapes[name] != shape:
            raise ModelLoadError(
                f"{source}: tensor {name} has shape {list(shapes[name])}, the configuration implies {list(shape)}."
            )
        expected.add(name)
    for name in shapes:
        if name not in expected:
            raise ModelLoadError(
                f"{source}: tensor {name} has no place in a {config.family} model of this configuration."
            )


def check_finite(source: Path, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values themselves; `ModelLoadError` when one is infinite or not a number, as damaged weights are."""
    import numpy as np  # a server knows the shapes of its models, and imports nothing that computes

    if not np.isfinite(values).all():
        raise ModelLoadError(f"{source}: tensor {name} holds values that are not finite numbers.")
    return values


def identity(files: Iterable[Path], *facts: object) -> str:
    """Digest of the files' names, sizes and modification times (ns) and of what was read from them.

    Cheap on purpose: contents are not read, so that a start does not hash gigabytes. A file that was
    replaced has another time, unless someone set it back by hand. Facts must be written the same every time.
    """
    digest = hashlib.sha256(repr(facts).encode())
    for file in files:
        status = file.stat()
        digest.update(repr((file.name, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()
