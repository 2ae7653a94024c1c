"""What a decoder looks like, whatever file it came from.

Sizes and switches only. Tensors go by the names that Hugging Face checkpoints of the LLaMA family use
(`model.layers.0.self_attn.q_proj.weight`, ...), whatever the file calls them, in its layout [out, in].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Norms:
    """Names of the norms around a layer's two branches; None where there is none."""

    before_attention: str | None
    after_attention: str | None
    before_mlp: str | None
    after_mlp: str | None


PRE_NORMS = Norms("input_layernorm", None, "post_attention_layernorm", None)
SANDWICH_NORMS = Norms(
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
)
POST_NORMS = Norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Hyperparameters of a decoder-only transformer, named as in transformers' configurations.

    Switches that few families have are off by default; `arriero.models.decoders.families` says who sets them.
    """

    family: str
    """`model_type` in transformers, e.g. `llama`."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context: int
    """Tokens up to which the model is computed as it was made; max_position_embeddings for most."""
    norm_epsilon: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None = None
    """See `arriero.models.decoders.rope`."""
    rotary_dim: int | None = None
    """How many elements of a head positions turn, the first ones; None: all."""
    local_rope_theta: float | None = None
    """The base in layers with a window, which then have no scaling; None: the same as in the others."""
    layers_without_positions: tuple[int, ...] = ()
    """Layers whose queries and keys are not turned."""
    windows: tuple[int | None, ...] = ()
    """For each layer, how many tokens a token attends to, itself the last; None: all. Empty: all in every layer."""
    tie_embeddings: bool = False
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    attention_bias: bool = False
    """Of the projections to queries, keys and values."""
    output_bias: bool = False
    """Of the projection after attention."""
    mlp_bias: bool = False
    norms: Norms = PRE_NORMS
    qk_norm: Literal["head", "projection"] | None = None
    """Queries and keys are normalised, each head by itself or all heads together."""
    attention_scale: float | None = None
    """Queries times keys are multiplied by this; None: one over the root of `head_dim`."""
    attention_softcap: float | None = None
    """Attention's logits x become c tanh(x / c)."""
    logits_softcap: float | None = None
    """The same for the vocabulary's logits."""
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    """Of what attention and MLP add to the residual stream."""
    logits_scale: float = 1.0

    def window(self, layer: int) -> int | None:
        """How many tokens a token attends to in a layer; None: all."""
        return self.windows[layer] if self.windows else None


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
        """The tensor by its Hugging Face name, as float32 [out, in] or [size]; norms as the factors that they apply.

        Raises `ModelLoadError` naming file and tensor when it is missing or has another shape than the
        configuration implies.
        """
        ...

    def __contains__(self, name: str) -> bool: ...
