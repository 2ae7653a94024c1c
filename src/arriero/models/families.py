"""The decoder families: how each one's config.json becomes a `DecoderConfig`, and how its tensors are stored.

A family is one function and one entry of `ARCHITECTURES`. Defaults are those of transformers' configuration classes,
because files leave out what equals them; sizes have none, a file without them is damaged. What would change the
result and is not computed is refused with `UnsupportedModel`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.architecture import POST_NORMS, SANDWICH_NORMS, DecoderConfig
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


def _internlm3(settings: Settings) -> DecoderConfig:
    """LLaMA with names of its own for the switches of biases."""
    values = {"attention_bias": settings.values.get("qkv_bias"), "mlp_bias": settings.values.get("bias")}
    own = Settings(settings.file, {**values, **settings.values})
    if own.boolean("attention_bias") != own.boolean("mlp_bias"):
        raise UnsupportedModel(f"{settings.file}: qkv_bias and bias differ, which is not computed.")
    return DecoderConfig(
        family="internlm3",
        **_sizes(settings, tied=False, head_dim=128, epsilon=1e-5),
        **_positions(settings, context=32768),
        **_biases(own),
        mlp_bias=own.boolean("mlp_bias"),
    )


def _seed_oss(settings: Settings) -> DecoderConfig:
    """LLaMA with a switch of its own for the bias after attention."""
    return DecoderConfig(
        family="seed_oss",
        **_sizes(settings, tied=False, head_dim=128),
        **_positions(settings, context=524288),
        attention_bias=settings.boolean("attention_bias", True),
        output_bias=settings.boolean("attention_out_bias"),
        mlp_bias=settings.boolean("mlp_bias"),
    )


def _phi3(settings: Settings) -> DecoderConfig:
    """Positions turn a part of each head; long contexts have factors of their own. Phi-4 and Phi-4-mini as well."""
    sizes = _sizes(settings, tied=False, epsilon=1e-5)
    longest = settings.integer("max_position_embeddings", 4096)
    # Where transformers looks first: beside the object, not in it.
    original = settings.integer("original_max_position_embeddings", 4096)
    values = {**_rope_parameters(settings, longest).values, "original_max_position_embeddings": original}
    if values.get("rope_type", values.get("type")) in ("su", "yarn"):
        values["rope_type"] = "longrope"  # what it was called before
    parameters = Settings(settings.file, values)
    return DecoderConfig(
        family="phi3",
        **sizes,
        **_scaling(parameters, longest),
        rope_theta=parameters.number("rope_theta", 10000.0),
        rotary_dim=int(sizes["head_dim"] * parameters.number("partial_rotary_factor", 1.0)),
        windows=_windows(settings, _window(settings, None), lambda layer: SLIDING, listed=False),
    )


def _gemma(settings: Settings) -> DecoderConfig:
    """Scaled embeddings and norms that multiply by one plus their weight, like all Gemmas."""
    values = {**settings.values}
    if values.get("hidden_act") == "gelu":  # written when the approximation was meant
        values["hidden_act"] = "gelu_pytorch_tanh"
    sizes = _sizes(Settings(settings.file, values), tied=True, head_dim=256, activation="gelu_pytorch_tanh")
    return DecoderConfig(
        family="gemma",
        **sizes,
        **_positions(settings, context=8192),
        **_biases(settings),
        embedding_scale=sizes["hidden_size"] ** 0.5,
    )


def _gemma2(settings: Settings) -> DecoderConfig:
    """Norms before and behind both branches, soft-caps, a window in every other layer."""
    sizes = _gemma_sizes(settings)
    return DecoderConfig(
        family="gemma2",
        **sizes,
        **_positions(settings, context=8192),
        **_biases(settings),
        norms=SANDWICH_NORMS,
        embedding_scale=sizes["hidden_size"] ** 0.5,
        attention_scale=_root_scale(settings),
        attention_softcap=_optional(settings, "attn_logit_softcapping", 50.0),
        logits_softcap=_optional(settings, "final_logit_softcapping", 30.0),
        windows=_windows(settings, _window(settings, 4096), lambda layer: FULL if layer % 2 else SLIDING),
    )


def _gemma3(settings: Settings) -> DecoderConfig:
    """Gemma 2 with norms of queries and keys in place of soft-caps; windows have positions of their own."""
    settings.neutral("attn_logit_softcapping")
    sizes = _gemma_sizes(settings)
    pattern = settings.integer("sliding_window_pattern", 6)
    return DecoderConfig(
        family="gemma3",
        **sizes,
        **_positions_by_type(settings, context=131072, theta=1e6, local_theta=10000.0),
        **_biases(settings),
        norms=SANDWICH_NORMS,
        qk_norm="head",
        embedding_scale=sizes["hidden_size"] ** 0.5,
        attention_scale=_root_scale(settings),
        logits_softcap=_optional(settings, "final_logit_softcapping", None),
        windows=_windows(
            settings, _window(settings, 4096), lambda layer: SLIDING if (layer + 1) % max(pattern, 1) else FULL
        ),
    )


def _smollm3(settings: Settings) -> DecoderConfig:
    """Every fourth layer has no positions."""
    window = _window(settings, None) if settings.boolean("use_sliding_window") else None
    unturned = _layers_without_positions(settings)
    return DecoderConfig(
        family="smollm3",
        **_sizes(settings, tied=True),
        **_positions(settings, context=32768, theta=2e6),
        **_biases(settings),
        mlp_bias=settings.boolean("mlp_bias"),
        layers_without_positions=unturned,
        windows=_windows(settings, window, lambda layer: SLIDING if layer in unturned else FULL),
    )


def _granite(settings: Settings) -> DecoderConfig:
    """LLaMA with four multipliers."""
    return DecoderConfig(
        family="granite",
        **_sizes(settings, tied=False),
        **_positions(settings, context=2048),
        **_biases(settings),
        mlp_bias=settings.boolean("mlp_bias"),
        attention_scale=settings.number("attention_multiplier", 1.0),
        embedding_scale=settings.number("embedding_multiplier", 1.0),
        residual_scale=settings.number("residual_multiplier", 1.0),
        logits_scale=1 / (settings.number("logits_scaling", 1.0) or math.inf),
    )


def _olmo2(settings: Settings) -> DecoderConfig:
    """Norms behind the branches alone, and of queries and keys over all heads."""
    return DecoderConfig(
        family="olmo2",
        **_sizes(settings, tied=False, epsilon=1e-5),
        **_positions(settings, context=2048),
        **_biases(settings),
        norms=POST_NORMS,
        qk_norm="projection",
    )


def _olmo3(settings: Settings) -> DecoderConfig:
    """OLMo 2 with a window in three layers of four; the others alone have scaled positions."""
    return DecoderConfig(
        family="olmo3",
        **_sizes(settings, tied=False, epsilon=1e-5),
        **_positions_by_type(settings, context=2048, theta=500000.0, local_theta=500000.0),
        **_biases(settings),
        norms=POST_NORMS,
        qk_norm="projection",
        windows=_windows(settings, _window(settings, 4096), lambda layer: SLIDING if (layer + 1) % 4 else FULL),
    )


_PHI3_FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}

ARCHITECTURES: Mapping[str, Family] = {
    "Gemma2ForCausalLM": Family(config=_gemma2, norms_from_one=True),
    "Gemma3ForCausalLM": Family(config=_gemma3, norms_from_one=True),
    "GemmaForCausalLM": Family(config=_gemma, norms_from_one=True),
    "GraniteForCausalLM": Family(config=_granite),
    "InternLM3ForCausalLM": Family(config=_internlm3),
    "LlamaForCausalLM": Family(config=_llama),
    "MinistralForCausalLM": Family(config=_ministral),
    "MistralForCausalLM": Family(config=_mistral),
    "Olmo2ForCausalLM": Family(config=_olmo2),
    "Olmo3ForCausalLM": Family(config=_olmo3),
    "Phi3ForCausalLM": Family(config=_phi3, fused=_PHI3_FUSED),
    "Qwen2ForCausalLM": Family(config=_qwen2),
    "Qwen3ForCausalLM": Family(config=_qwen3),
    "SeedOssForCausalLM": Family(config=_seed_oss),
    "SmolLM3ForCausalLM": Family(config=_smollm3),
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


def _positions_by_type(settings: Settings, *, context: int, theta: float, local_theta: float) -> dict[str, Any]:
    """The same where layers with a window have positions of their own, which are not scaled."""
    longest = settings.integer("max_position_embeddings", context)
    by_type = settings.within("rope_parameters")
    if by_type.values and not {FULL, SLIDING} & by_type.values.keys():
        raise settings.unexpected("rope_parameters", f"one object each for {FULL} and {SLIDING}")
    full, local = by_type.within(FULL), by_type.within(SLIDING)
    outer = {"original_max_position_embeddings": longest, "max_position_embeddings": longest}
    full = Settings(settings.file, {**outer, **full.values, **settings.within("rope_scaling").values})
    local.neutral("rope_type", "default")
    for parameters in (full, local):
        parameters.neutral("partial_rotary_factor", 1, 1.0)
    return {
        "rope_theta": full.number("rope_theta", settings.number("rope_theta", theta)),
        "local_rope_theta": local.number("rope_theta", settings.number("rope_local_base_freq", local_theta)),
        **_scaling(full, longest),
    }


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


def _layers_without_positions(settings: Settings) -> tuple[int, ...]:
    """The layers that have a 0 in `no_rope_layers`; without the list, one in every `no_rope_layer_interval`."""
    num_layers = settings.integer("num_hidden_layers")
    listed = settings.items("no_rope_layers")
    if listed is None:
        interval = max(settings.integer("no_rope_layer_interval", 4), 1)
        return tuple(range(interval - 1, min(num_layers, _MOST_LAYERS), interval))
    if len(listed) < num_layers or any(each not in (0, 1) for each in listed):
        raise settings.unexpected("no_rope_layers", f"0 or 1 for each of {num_layers} layers")
    return tuple(layer for layer in range(num_layers) if not listed[layer])


def _gemma_sizes(settings: Settings) -> dict[str, Any]:
    return _sizes(settings, tied=True, head_dim=256, activation="gelu_pytorch_tanh", activation_key="hidden_activation")


def _root_scale(settings: Settings) -> float:
    scalar = settings.number("query_pre_attn_scalar", 256.0)
    if scalar <= 0:
        raise settings.unexpected("query_pre_attn_scalar", "a positive number")
    return 1 / math.sqrt(scalar)


def _optional(settings: Settings, name: str, absent: float | None) -> float | None:
    """A number that is switched off by null, which is not the same as leaving it out."""
    value = settings.values.get(name, absent)
    return None if value is None else settings.number(name, absent)
