"""The decoder families: how each one's config.json becomes a `DecoderConfig`, and how its tensors are stored.

A family is one function and one entry of `ARCHITECTURES`. Defaults are those of transformers' configuration classes,
because files leave out what equals them; sizes have none, a file without them is damaged. What would change the
result and is not computed is refused with `UnsupportedModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.architecture import DecoderConfig
from arriero.models.json_files import Settings, brief
from arriero.models.rope import rope_scaling

ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
FULL, SLIDING = "full_attention", "sliding_attention"
_MOST_LAYERS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How one value of `architectures` is read."""

    config: Callable[[Settings], DecoderConfig]
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Modules of a layer that are stored as one, their rows one below the other, and the parts they have."""
    norms_from_one: bool = False
    """True when a norm multiplies by one plus what is stored."""


def _llama(settings: Settings) -> DecoderConfig:
    return DecoderConfig(
        family="llama",
        **_sizes(settings, tied=False),
        **_positions(settings, context=2048),
        **_biases(settings),
        mlp_bias=settings.boolean("mlp_bias"),
    )


def _mistral(settings: Settings) -> DecoderConfig:
    """LLaMA without biases, with a window in every layer."""
    return DecoderConfig(
        family="mistral",
        **_sizes(settings, tied=False),
        **_positions(settings, context=131072),
        windows=_windows(settings, _window(settings, 4096), lambda layer: SLIDING, listed=False),
    )


def _ministral(settings: Settings) -> DecoderConfig:
    """Mistral where `layer_types` may leave some layers without a window."""
    return DecoderConfig(
        family="ministral",
        **_sizes(settings, tied=False),
        **_positions(settings, context=131072),
        windows=_windows(settings, _window(settings, 4096), lambda layer: SLIDING),
    )


def _qwen2(settings: Settings) -> DecoderConfig:
    """Biases for queries, keys and values alone."""
    return DecoderConfig(
        family="qwen2",
        **_sizes(settings, tied=False),
        **_positions(settings, context=32768),
        attention_bias=True,
        windows=_qwen_windows(settings),
    )


def _qwen3(settings: Settings) -> DecoderConfig:
    """Norms of every head of queries and keys."""
    return DecoderConfig(
        family="qwen3",
        **_sizes(settings, tied=False, head_dim=128),
        **_positions(settings, context=32768),
        **_biases(settings),
        qk_norm="head",
        windows=_qwen_windows(settings),
    )


ARCHITECTURES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(config=_llama),
    "MistralForCausalLM": Family(config=_mistral),
    "MinistralForCausalLM": Family(config=_ministral),
    "Qwen2ForCausalLM": Family(config=_qwen2),
    "Qwen3ForCausalLM": Family(config=_qwen3),
}
"""By the name of transformers' class, as config.json's `architectures` has it."""


def family_of(settings: Settings) -> Family:
    """The family that config.json names; `UnsupportedModel` for another one, or for quantised weights."""
    settings.neutral("quantization_config")
    listed = settings.values.get("architectures")
    name = listed[0] if isinstance(listed, list) and len(listed) == 1 else listed
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModel(f"{settings.file}: the architecture is {brief(name)}, Arriero runs {known}.")
    for setting in ("rope_interleaved", "is_decoder", "add_cross_attention", "use_bidirectional_attention"):
        settings.neutral(setting, False)
    return ARCHITECTURES[name]


def _sizes(
    settings: Settings,
    *,
    tied: bool,
    head_dim: int | None = None,
    epsilon: float = 1e-6,
    activation: str = "silu",
    activation_key: str = "hidden_act",
) -> dict[str, Any]:
    """What every family has."""
    num_heads = settings.integer("num_attention_heads")
    hidden_size = settings.integer("hidden_size")
    name = settings.values.get(activation_key) or activation
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise settings.unsupported(activation_key)
    return {
        "num_layers": settings.integer("num_hidden_layers"),
        "hidden_size": hidden_size,
        "intermediate_size": settings.integer("intermediate_size"),
        "num_heads": num_heads,
        "num_kv_heads": settings.integer("num_key_value_heads", num_heads),
        "head_dim": settings.integer("head_dim", head_dim or hidden_size // max(num_heads, 1)),
        "vocab_size": settings.integer("vocab_size"),
        "norm_epsilon": settings.number("rms_norm_eps", epsilon),
        "tie_embeddings": settings.boolean("tie_word_embeddings", tied),
        "activation": ACTIVATIONS[name],
    }


def _biases(settings: Settings) -> dict[str, Any]:
    has_bias = settings.boolean("attention_bias")
    return {"attention_bias": has_bias, "output_bias": has_bias}


def _positions(settings: Settings, *, context: int, theta: float = 10000.0) -> dict[str, Any]:
    """Context, base and scaling, from `rope_parameters` or from the older `rope_theta` and `rope_scaling`."""
    longest = settings.integer("max_position_embeddings", context)
    merged = _rope_parameters(settings, longest)
    merged.neutral("partial_rotary_factor", 1, 1.0)
    return {"rope_theta": merged.number("rope_theta", theta), **_scaling(merged, longest)}


def _rope_parameters(settings: Settings, longest: int) -> Settings:
    name = "rope_scaling" if settings.values.get("rope_scaling") else "rope_parameters"
    # What the object leaves out stands beside it, or is the context the model was trained for.
    outer = {name: settings.values.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    outer["original_max_position_embeddings"] = settings.integer("original_max_position_embeddings", longest)
    outer["max_position_embeddings"] = longest
    return Settings(settings.file, {**outer, **settings.within(name).values})


def _scaling(parameters: Settings, longest: int) -> dict[str, Any]:
    """The scaling, and the context within which it is computed; see `arriero.models.rope`."""
    scaling = rope_scaling(parameters.file, parameters.values)
    if scaling is not None and scaling["rope_type"] == "factors":
        longest = min(longest, parameters.integer("original_max_position_embeddings"))
    return {"rope_scaling": scaling, "context": longest}


def _window(settings: Settings, absent: int | None) -> int | None:
    """`sliding_window`, which means something else when it is null than when it is absent."""
    value = settings.values.get("sliding_window", absent)
    return None if value is None else settings.integer("sliding_window", absent)


def _windows(
    settings: Settings, window: int | None, type_of: Callable[[int], str], *, listed: bool = True
) -> tuple[int | None, ...]:
    """Each layer's window: `window` where `layer_types`, or without it `type_of`, says so."""
    types = settings.items("layer_types") if listed else None
    num_layers = settings.integer("num_hidden_layers")
    if types is None:
        if window is None or num_layers > _MOST_LAYERS:  # the latter fails when tensors are looked for
            return ()
        types = [type_of(layer) for layer in range(num_layers)]
    if len(types) != num_layers:
        raise settings.unexpected("layer_types", f"one for each of {num_layers} layers")
    for each in types:
        if each not in (FULL, SLIDING):
            raise UnsupportedModel(f"{settings.file}: attention of type {brief(each)} is not computed.")
    if SLIDING not in types:
        return ()
    if window is None:
        raise ModelLoadError(f"{settings.file}: some layers have a window, but sliding_window is not set.")
    return tuple(window if each == SLIDING else None for each in types)


def _qwen_windows(settings: Settings) -> tuple[int | None, ...]:
    """The last layers have the window, if it is switched on."""
    window = _window(settings, 4096) if settings.boolean("use_sliding_window") else None
    first = settings.integer("max_window_layers", 28)
    return _windows(settings, window, lambda layer: SLIDING if layer >= first else FULL)
