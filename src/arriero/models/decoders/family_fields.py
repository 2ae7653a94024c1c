"""The parts of config.json that decoder families share, each as fields of `DecoderConfig`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.decoders.rope import rope_scaling
from arriero.models.files.json_files import Settings, brief

ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
FULL, SLIDING = "full_attention", "sliding_attention"
MOST_LAYERS = 4096
"""More than any model has: no list is made for a file that claims more."""


def sizes(
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


def biases(settings: Settings) -> dict[str, Any]:
    """One switch for all four projections of attention."""
    has_bias = settings.boolean("attention_bias")
    return {"attention_bias": has_bias, "output_bias": has_bias}


def positions(settings: Settings, *, context: int, theta: float = 10000.0) -> dict[str, Any]:
    """Context, base and scaling, from `rope_parameters` or from the older `rope_theta` and `rope_scaling`."""
    longest = settings.integer("max_position_embeddings", context)
    merged = rope_parameters(settings, longest)
    merged.neutral("partial_rotary_factor", 1, 1.0)
    return {"rope_theta": merged.number("rope_theta", theta), **scaling(merged, longest)}


def positions_by_type(settings: Settings, *, context: int, theta: float, local_theta: float) -> dict[str, Any]:
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
        **scaling(full, longest),
    }


def rope_parameters(settings: Settings, longest: int) -> Settings:
    """`rope_parameters`, or the older `rope_scaling`, and beside them what they may leave out."""
    name = "rope_scaling" if settings.values.get("rope_scaling") else "rope_parameters"
    outer = {name: settings.values.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    outer["original_max_position_embeddings"] = settings.integer("original_max_position_embeddings", longest)
    outer["max_position_embeddings"] = longest
    return Settings(settings.file, {**outer, **settings.within(name).values})


def scaling(parameters: Settings, longest: int) -> dict[str, Any]:
    """The scaling, and the context within which it is computed; see `arriero.models.decoders.rope`."""
    scaling = rope_scaling(parameters.file, parameters.values)
    if scaling is not None and scaling["rope_type"] == "factors":
        longest = min(longest, parameters.integer("original_max_position_embeddings"))
    return {"rope_scaling": scaling, "context": longest}


def window(settings: Settings, absent: int | None) -> int | None:
    """`sliding_window`, which means something else when it is null than when it is absent."""
    value = settings.values.get("sliding_window", absent)
    return None if value is None else settings.integer("sliding_window", absent)


def windows(
    settings: Settings, window: int | None, type_of: Callable[[int], str], *, listed: bool = True
) -> tuple[int | None, ...]:
    """Each layer's window: `window` where `layer_types`, or without it `type_of`, says so."""
    types = settings.items("layer_types") if listed else None
    num_layers = settings.integer("num_hidden_layers")
    if types is None:
        if window is None or num_layers > MOST_LAYERS:  # the latter fails when tensors are looked for
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


def optional(settings: Settings, name: str, absent: float | None) -> float | None:
    """A number that is switched off by null, which is not the same as leaving it out."""
    value = settings.values.get(name, absent)
    return None if value is None else settings.number(name, absent)
