"""The decoder families as GGUF files hold them: how metadata becomes a `DecoderConfig`, and what tensors are called.

An architecture is one entry of `ARCHITECTURES`, by the value of `general.architecture`. What a file does not say is
what llama.cpp takes for granted in models of that architecture; where it computes something else than transformers
(the windows of Phi-3, which it leaves out), this follows transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from arriero.errors import ModelLoadError
from arriero.models.architecture import POST_NORMS, SANDWICH_NORMS
from arriero.models.files.gguf_file import GGUFFile

_MOST_LAYERS = 4096

FIELDS = {
    "num_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_heads": "attention.head_count",
    "context": "context_length",
    "norm_epsilon": "attention.layer_norm_rms_epsilon",
}
"""Required fields of `DecoderConfig`, and the key of each."""
UNDERSTOOD = frozenset(
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
)
"""Further keys that are read, or only inform, in every architecture."""
NEUTRAL: Mapping[str, Any] = {
    "attention.causal": True,
    "attention.sliding_window": 0,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scale_linear": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "use_parallel_residual": False,
}
"""Keys for something that is not computed, and the one value with which that makes no difference."""
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
"""Whole tensor names in the file, and in Hugging Face's layout."""
_LINEAR = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FUSED = {"attn_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")}
_LLAMA = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", **_LINEAR}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_SANDWICH = {"attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm", **_POST_NORMS, **_LINEAR}


class Metadata:
    """The fields under one architecture's prefix, type-checked as they are taken."""

    def __init__(self, file: GGUFFile) -> None:
        self.path = file.path
        self.prefix = f"{file.fields['general.architecture']}."
        self.fields = {
            key.removeprefix(self.prefix): v for key, v in file.fields.items() if key.startswith(self.prefix)
        }

    def number(self, key: str, kind: type[int] | type[float], default: float | None = None) -> Any:
        """The number under a key; `ModelLoadError` when it is something else, or absent without a default."""
        value = self.fields.get(key, default)
        if type(value) is not kind:
            raise ModelLoadError(f"{self.path}: {self.prefix}{key} is {brief(value)}, expected one {kind.__name__}.")
        return value

    def optional(self, key: str) -> float | None:
        """A number that is None where it is absent or 0, which switches it off."""
        value: float = self.number(key, float, 0.0)
        return value or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How one value of `general.architecture` is read. Metadata keys stand without their `<architecture>.` prefix."""

    family: str
    layer_modules: Mapping[str, str] = field(default_factory=lambda: _LLAMA)
    """Module names inside a layer, in the file and in Hugging Face's layout."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _FUSED)
    """Modules in the file that are several in Hugging Face's layout, their rows one below the other."""
    permuted: bool = False
    """True when the rows of queries and keys are in llama.cpp's order, pairs adjacent."""
    partial_rotary: bool = False
    """True when `rope.dimension_count` may be less than a head."""
    understood: frozenset[str] = frozenset()
    """Keys that `switches` reads, and those that only inform."""
    switches: Callable[[Metadata], dict[str, Any]] = lambda metadata: {}
    """Further fields of `DecoderConfig`."""


def _windows(metadata: Metadata, window: int, period: int) -> tuple[int | None, ...]:
    """A window in all layers but every `period`-th, unless the file has a list or a period of its own."""
    num_layers = metadata.number("block_count", int)
    pattern = metadata.fields.get("attention.sliding_window_pattern", period)
    if window == 0 or num_layers > _MOST_LAYERS:  # the latter fails when tensors are looked for
        return ()
    if type(pattern) is int and pattern >= 0:
        pattern = [pattern == 0 or (layer + 1) % pattern != 0 for layer in range(num_layers)]
    if not isinstance(pattern, list) or len(pattern) != num_layers:
        raise ModelLoadError(
            f"{metadata.path}: {metadata.prefix}attention.sliding_window_pattern is {brief(pattern)}, "
            f"expected one number or {num_layers} switches."
        )
    return tuple(window if each else None for each in pattern)


def _gemma(metadata: Metadata) -> dict[str, Any]:
    return {
        "activation": "gelu_tanh",
        "embedding_scale": math.sqrt(max(metadata.number("embedding_length", int), 0)),
    }


def _large_gemma_scale(metadata: Metadata, num_layers: int) -> float | None:
    """Of the largest model alone, which has that many layers: its heads share the hidden size."""
    if metadata.number("block_count", int) != num_layers:
        return None
    size = metadata.number("embedding_length", int) // max(metadata.number("attention.head_count", int), 1)
    return 1 / math.sqrt(max(size, 1))


def _gemma2(metadata: Metadata) -> dict[str, Any]:
    return {
        **_gemma(metadata),
        "norms": SANDWICH_NORMS,
        "attention_scale": _large_gemma_scale(metadata, 46),
        "attention_softcap": metadata.number("attn_logit_softcapping", float, 50.0) or None,
        "logits_softcap": metadata.number("final_logit_softcapping", float, 30.0) or None,
        "windows": _windows(metadata, metadata.number("attention.sliding_window", int, 4096), 2),
    }


def _gemma3(metadata: Metadata) -> dict[str, Any]:
    return {
        **_gemma(metadata),
        "norms": SANDWICH_NORMS,
        "qk_norm": "head",
        "attention_scale": _large_gemma_scale(metadata, 62),
        "logits_softcap": metadata.optional("final_logit_softcapping"),
        "local_rope_theta": metadata.number("rope.freq_base_swa", float, 10000.0),
        "windows": _windows(metadata, metadata.number("attention.sliding_window", int), 6),
    }


def _granite(metadata: Metadata) -> dict[str, Any]:
    # llama.cpp's switch for a Granite without positions.
    turned = metadata.fields.get("rope.scaling.finetuned", True)
    num_layers = min(metadata.number("block_count", int), _MOST_LAYERS)
    return {
        "layers_without_positions": () if turned else tuple(range(num_layers)),
        "attention_scale": metadata.optional("attention.scale"),
        "embedding_scale": metadata.optional("embedding_scale") or 1.0,
        "residual_scale": metadata.optional("residual_scale") or 1.0,
        "logits_scale": 1 / (metadata.optional("logit_scale") or 1.0),
    }


def _olmo2(metadata: Metadata) -> dict[str, Any]:
    """OLMo 3 too, which is an OLMo 2 with windows."""
    windows = _windows(metadata, metadata.number("attention.sliding_window", int, 0), 4)
    theta = metadata.number("rope.freq_base", float, 10000.0)
    return {
        "norms": POST_NORMS,
        "qk_norm": "projection",
        "windows": windows,
        "local_rope_theta": metadata.number("rope.freq_base_swa", float, theta) if windows else None,
    }


def _phi3(metadata: Metadata) -> dict[str, Any]:
    return {"windows": _windows(metadata, metadata.number("attention.sliding_window", int, 0), 0)}


def _smollm3(metadata: Metadata) -> dict[str, Any]:
    return {"layers_without_positions": tuple(range(3, min(metadata.number("block_count", int), _MOST_LAYERS), 4))}


_WINDOW_KEYS = frozenset({"attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"})
_SOFTCAP_KEYS = frozenset({"attn_logit_softcapping", "final_logit_softcapping"})

ARCHITECTURES: Mapping[str, Architecture] = {
    "gemma": Architecture(family="gemma", switches=_gemma),
    "gemma2": Architecture(
        family="gemma2", layer_modules=_SANDWICH, understood=_WINDOW_KEYS | _SOFTCAP_KEYS, switches=_gemma2
    ),
    "gemma3": Architecture(
        family="gemma3",
        layer_modules={**_SANDWICH, **_QK_NORMS},
        understood=_WINDOW_KEYS | {"final_logit_softcapping"},
        switches=_gemma3,
    ),
    "granite": Architecture(
        family="granite",
        permuted=True,
        understood=frozenset({"attention.scale", "embedding_scale", "residual_scale", "logit_scale"}),
        switches=_granite,
    ),
    "llama": Architecture(family="llama", permuted=True),
    "olmo2": Architecture(
        family="olmo2",
        layer_modules={**_POST_NORMS, **_LINEAR, **_QK_NORMS},
        understood=_WINDOW_KEYS,
        switches=_olmo2,
    ),
    "phi3": Architecture(
        family="phi3",
        fused={**_FUSED, "ffn_up": ("mlp.gate_proj", "mlp.up_proj")},
        partial_rotary=True,
        understood=frozenset({"attention.sliding_window", "rope.scaling.attn_factor"}),
        switches=lambda metadata: {
            "windows": _windows(metadata, metadata.number("attention.sliding_window", int, 0), 0)
        },
    ),
    "qwen2": Architecture(family="qwen2"),
    "qwen3": Architecture(
        family="qwen3", layer_modules={**_LLAMA, **_QK_NORMS}, switches=lambda metadata: {"qk_norm": "head"}
    ),
    "seed_oss": Architecture(
        family="seed_oss",
        layer_modules={"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm", **_LINEAR},
    ),
    "smollm3": Architecture(family="smollm3", permuted=True, switches=_smollm3),
}


def brief(value: Any) -> str:
    """A value as it is shown in an error."""
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)
