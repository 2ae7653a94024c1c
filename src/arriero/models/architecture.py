"""What a decoder looks like, whatever file it came from.

Sizes and switches only. Tensors go by the names that Hugging Face checkpoints of the LLaMA family use
(`model.layers.0.self_attn.q_proj.weight`, ...), whatever the file calls them, in its layout [out, in].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Hyperparameters of a decoder-only transformer, named as in transformers' configurations."""

    family: str
    """The architecture's key in `arriero.runners.onnx.families`, e.g. `llama`."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context: int
    """max_position_embeddings."""
    norm_epsilon: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None = None
    """See `arriero.models.rope`."""
    tie_embeddings: bool = False
    activation: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False


class Checkpoint(Protocol):
    """A model's weights on disk, read one tensor at a time."""

    @property
    def config(self) -> DecoderConfig:
        """Sizes and switches, checked for consistency when the file was opened."""
        ...

    @property
    def identity(self) -> str:
        """Hexadecimal digest that changes when a weight or the configuration could have changed."""
        ...

    def tensor(self, name: str) -> NDArray[np.float32]:
        """The tensor by its Hugging Face name, as float32 [out, in] or [size].

        Raises `ModelLoadError` naming file and tensor when it is missing or has another shape than the
        configuration implies.
        """
        ...

    def __contains__(self, name: str) -> bool: ...
