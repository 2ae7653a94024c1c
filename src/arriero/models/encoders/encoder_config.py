"""What an encoder looks like, whatever family it is of, and which tensors that implies.

Tensors go by names of our own, layers' sources joined where the graph multiplies by them at once:

    embeddings.word, embeddings.position, embeddings.type, embeddings.norm
    layers.N.attention.qkv          queries, keys and values, [3 * hidden, hidden]
    layers.N.attention.output, layers.N.attention.norm
    layers.N.mlp.inner              [inner, hidden]; where gated [2 * inner, hidden], the activated half first
    layers.N.mlp.output, layers.N.mlp.norm
    relative_bias                   [buckets, heads]
    final_norm
    head.dense, head.norm, head.out

each with `.weight` and, where the configuration says so, `.bias`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arriero.errors import ModelLoadError
from arriero.models.files.json_files import brief

Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh", "sigmoid", "identity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A classification head: one vector of the input through dense, activation, norm and a last linear layer."""

    labels: tuple[str, ...]
    """What each of the scores stands for."""
    activation: Activation
    """Between the two linear layers."""
    pooling: Literal["cls", "mean"] = "cls"
    norm: bool = False
    bias: bool = True
    """Of the first linear layer."""
    score_activation: Activation = "identity"
    """What sentence-transformers applies to the logits by default: sigmoid where there is one label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """Sizes and switches of a bidirectional transformer."""

    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    vocab_size: int
    context: int
    """Tokens that the positions reach for."""
    norm_epsilon: float
    activation: Activation = "gelu"
    num_positions: int = 0
    """Rows of the table of learned positions; 0: it has none."""
    padding_id: int | None = None
    """Positions start behind this number, and tokens of this id do not count; None: they start at 0 and all count."""
    num_types: int = 0
    """Kinds of segments; 0: it does not tell them apart."""
    pre_norm: bool = False
    """Norms before attention and MLP (the first of all left out) and one at the end, instead of after each."""
    gated: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    relative_buckets: int = 0
    """Rows of MPNet's table of attention biases by distance; 0: it has none."""
    rope_theta: float = 0.0
    """Base of the rotary positions; 0: it has none."""
    local_rope_theta: float = 0.0
    """The same in layers with local attention."""
    local_layers: frozenset[int] = frozenset()
    """Layers in which a token sees only those within `local_reach`."""
    local_reach: int = 0
    head: Head | None = None
    """Present where the model scores its inputs instead of embedding them."""

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads


def tensor_shapes(config: EncoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that the configuration asks for; linear layers are [out, in]."""
    hidden, inner = config.hidden_size, config.intermediate_size
    tables = {"word": config.vocab_size, "position": config.num_positions, "type": config.num_types}
    for name, size in tables.items():
        if size:
            yield f"embeddings.{name}.weight", (size, hidden)
    yield from _norm("embeddings.norm", config)
    for layer in range(config.num_layers):
        prefix = f"layers.{layer}"
        yield from _linear(f"{prefix}.attention.qkv", 3 * hidden, hidden, config.attention_bias)
        yield from _linear(f"{prefix}.attention.output", hidden, hidden, config.attention_bias)
        if layer or not config.pre_norm:
            yield from _norm(f"{prefix}.attention.norm", config)
        yield from _linear(f"{prefix}.mlp.inner", inner * (1 + config.gated), hidden, config.mlp_bias)
        yield from _linear(f"{prefix}.mlp.output", hidden, inner, config.mlp_bias)
        yield from _norm(f"{prefix}.mlp.norm", config)
    if config.relative_buckets:
        yield "relative_bias.weight", (config.relative_buckets, config.num_heads)
    if config.pre_norm:
        yield from _norm("final_norm", config)
    if config.head:
        yield from _linear("head.dense", hidden, hidden, config.head.bias)
        if config.head.norm:
            yield from _norm("head.norm", config)
        yield from _linear("head.out", len(config.head.labels), hidden, True)


def _linear(name: str, out: int, size: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, size)
    if bias:
        yield f"{name}.bias", (out,)


def _norm(name: str, config: EncoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (config.hidden_size,)
    if config.norm_bias:
        yield f"{name}.bias", (config.hidden_size,)


def checked_size(source: Path, name: str, size: int, largest: int = 10_000) -> int:
    """The size itself, if a model can have it; else `ModelLoadError` naming `source`, instead of a very long wait."""
    if not 1 <= size <= largest:
        raise ModelLoadError(f"{source}: {name} is {brief(size)}, expected from 1 to {largest:,}.")
    return size


def check_config(source: Path, config: EncoderConfig) -> EncoderConfig:
    """The configuration itself, if its numbers can belong together; else `ModelLoadError` naming `source`."""
    for name in ("num_layers", "num_heads"):
        checked_size(source, name, getattr(config, name))
    for name in ("hidden_size", "intermediate_size", "vocab_size", "context"):
        checked_size(source, name, getattr(config, name), largest=10_000_000)
    if config.hidden_size % config.num_heads:
        raise ModelLoadError(f"{source}: {config.num_heads} heads cannot share {config.hidden_size} channels evenly.")
    if config.rope_theta and config.head_dim % 2:
        raise ModelLoadError(f"{source}: the head size is {config.head_dim}, rotary positions need an even one.")
    if not config.norm_epsilon > 0:
        raise ModelLoadError(f"{source}: the norms' epsilon is {config.norm_epsilon}, expected a positive number.")
    return config
