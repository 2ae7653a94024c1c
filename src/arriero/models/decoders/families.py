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

from arriero.errors import UnsupportedModel
from arriero.models.architecture import POST_NORMS, SANDWICH_NORMS, DecoderConfig
from arriero.models.decoders import family_fields as fields
from arriero.models.decoders.family_fields import FULL, MOST_LAYERS, SLIDING
from arriero.models.files.json_files import Settings, brief


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How one value of `architectures` is read."""

    config: Callable[[Settings], DecoderConfig]
    norms_from_one: bool = False
    """True when a norm multiplies by one plus what is stored."""
    prefixes: Mapping[str, str] = field(default_factory=dict)
    """How names of tensors begin in the file, and in a decoder that is a model by itself."""
    other_parts: tuple[str, ...] = ()
    """How names of tensors begin that belong to parts of the model which text does not pass through."""


def _llama(settings: Settings) -> DecoderConfig:
    """RMS norms before attention and MLP, rotary positions, grouped key heads, biases or none."""
    return DecoderConfig(
        family="llama",
        **fields.sizes(settings, tied=False),
        **fields.positions(settings, context=2048),
        **fields.biases(settings),
        mlp_bias=settings.boolean("mlp_bias"),
    )


def _mistral(settings: Settings) -> DecoderConfig:
    """LLaMA without biases, with a window in every layer."""
    return DecoderConfig(
        family="mistral",
        **fields.sizes(settings, tied=False),
        **fields.positions(settings, context=131072),
        windows=fields.windows(settings, fields.window(settings, 4096), lambda layer: SLIDING, listed=False),
    )


def _ministral(settings: Settings) -> DecoderConfig:
    """Mistral where `layer_types` may leave some layers without a window."""
    return DecoderConfig(
        family="ministral",
        **fields.sizes(settings, tied=False),
        **fields.positions(settings, context=131072),
        windows=fields.windows(settings, fields.window(settings, 4096), lambda layer: SLIDING),
    )


def _qwen2(settings: Settings) -> DecoderConfig:
    """Biases for queries, keys and values alone; the last layers may have a window."""
    return DecoderConfig(
        family="qwen2",
        **fields.sizes(settings, tied=False),
        **fields.positions(settings, context=32768),
        attention_bias=True,
        windows=_qwen_windows(settings),
    )


def _qwen3(settings: Settings) -> DecoderConfig:
    """Norms of every head of queries and keys; windows as in Qwen2."""
    return DecoderConfig(
        family="qwen3",
        **fields.sizes(settings, tied=False, head_dim=128),
        **fields.positions(settings, context=32768),
        **fields.biases(settings),
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
        **fields.sizes(settings, tied=False, head_dim=128, epsilon=1e-5),
        **fields.positions(settings, context=32768),
        **fields.biases(own),
        mlp_bias=own.boolean("mlp_bias"),
    )


def _seed_oss(settings: Settings) -> DecoderConfig:
    """LLaMA with a switch of its own for the bias after attention."""
    return DecoderConfig(
        family="seed_oss",
        **fields.sizes(settings, tied=False, head_dim=128),
        **fields.positions(settings, context=524288),
        attention_bias=settings.boolean("attention_bias", True),
        output_bias=settings.boolean("attention_out_bias"),
        mlp_bias=settings.boolean("mlp_bias"),
    )


def _phi3(settings: Settings) -> DecoderConfig:
    """Positions turn a part of each head; long contexts have factors of their own."""
    sizes = fields.sizes(settings, tied=False, epsilon=1e-5)
    longest = settings.integer("max_position_embeddings", 4096)
    # Where transformers looks first: beside the object, not in it.
    original = settings.integer("original_max_position_embeddings", 4096)
    values = {**fields.rope_parameters(settings, longest).values, "original_max_position_embeddings": original}
    if values.get("rope_type", values.get("type")) in ("su", "yarn"):
        values["rope_type"] = "longrope"  # what it was called before
    parameters = Settings(settings.file, values)
    turned = int(sizes["head_dim"] * parameters.number("partial_rotary_factor", 1.0))
    return DecoderConfig(
        family="phi3",
        **sizes,
        **fields.scaling(parameters, longest),
        rope_theta=parameters.number("rope_theta", 10000.0),
        rotary_dim=None if turned == sizes["head_dim"] else turned,
        windows=fields.windows(settings, fields.window(settings, None), lambda layer: SLIDING, listed=False),
    )


def _gemma(settings: Settings) -> DecoderConfig:
    """Scaled embeddings and norms that multiply by one plus their weight, like all Gemmas."""
    values = {**settings.values}
    if values.get("hidden_act") == "gelu":  # written when the approximation was meant
        values["hidden_act"] = "gelu_pytorch_tanh"
    sizes = fields.sizes(Settings(settings.file, values), tied=True, head_dim=256, activation="gelu_pytorch_tanh")
    return DecoderConfig(
        family="gemma",
        **sizes,
        **fields.positions(settings, context=8192),
        **fields.biases(settings),
        embedding_scale=sizes["hidden_size"] ** 0.5,
    )


def _gemma2(settings: Settings) -> DecoderConfig:
    """Norms before and behind both branches, soft-caps, a window in every other layer."""
    sizes = _gemma_sizes(settings)
    return DecoderConfig(
        family="gemma2",
        **sizes,
        **fields.positions(settings, context=8192),
        **fields.biases(settings),
        norms=SANDWICH_NORMS,
        embedding_scale=sizes["hidden_size"] ** 0.5,
        attention_scale=_root_scale(settings),
        attention_softcap=fields.optional(settings, "attn_logit_softcapping", 50.0),
        logits_softcap=fields.optional(settings, "final_logit_softcapping", 30.0),
        windows=fields.windows(settings, fields.window(settings, 4096), _all_but_every(2)),
    )


def _gemma3(settings: Settings) -> DecoderConfig:
    """Gemma 2 with norms of queries and keys in place of soft-caps; windows have positions of their own."""
    settings.neutral("attn_logit_softcapping")
    sizes = _gemma_sizes(settings)
    pattern = settings.integer("sliding_window_pattern", 6)
    return DecoderConfig(
        family="gemma3",
        **sizes,
        **fields.positions_by_type(settings, context=131072, theta=1e6, local_theta=10000.0),
        **fields.biases(settings),
        norms=SANDWICH_NORMS,
        qk_norm="head",
        embedding_scale=sizes["hidden_size"] ** 0.5,
        attention_scale=_root_scale(settings),
        logits_softcap=fields.optional(settings, "final_logit_softcapping", None),
        windows=fields.windows(settings, fields.window(settings, 4096), _all_but_every(pattern)),
    )


def _gemma3_with_images(settings: Settings) -> DecoderConfig:
    """Gemma 3's larger models, of which the part that sees is left out: they are served for text alone."""
    text = settings.within("text_config").values
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208}
    outer = {"tie_word_embeddings": settings.values.get("tie_word_embeddings")}
    return _gemma3(Settings(settings.file, {**sizes, **outer, **text}))


def _smollm3(settings: Settings) -> DecoderConfig:
    """Every fourth layer has no positions."""
    window = fields.window(settings, None) if settings.boolean("use_sliding_window") else None
    unturned = _layers_without_positions(settings)
    return DecoderConfig(
        family="smollm3",
        **fields.sizes(settings, tied=True),
        **fields.positions(settings, context=32768, theta=2e6),
        **fields.biases(settings),
        mlp_bias=settings.boolean("mlp_bias"),
        layers_without_positions=unturned,
        windows=fields.windows(settings, window, lambda layer: SLIDING if layer in unturned else FULL),
    )


def _granite(settings: Settings) -> DecoderConfig:
    """LLaMA with four multipliers."""
    return DecoderConfig(
        family="granite",
        **fields.sizes(settings, tied=False),
        **fields.positions(settings, context=2048),
        **fields.biases(settings),
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
        **fields.sizes(settings, tied=False, epsilon=1e-5),
        **fields.positions(settings, context=2048),
        **fields.biases(settings),
        norms=POST_NORMS,
        qk_norm="projection",
    )


def _olmo3(settings: Settings) -> DecoderConfig:
    """OLMo 2 with a window in three layers of four; the others alone have scaled positions."""
    return DecoderConfig(
        family="olmo3",
        **fields.sizes(settings, tied=False, epsilon=1e-5),
        **fields.positions_by_type(settings, context=2048, theta=500000.0, local_theta=500000.0),
        **fields.biases(settings),
        norms=POST_NORMS,
        qk_norm="projection",
        windows=fields.windows(
            settings, fields.window(settings, 4096), lambda layer: SLIDING if (layer + 1) % 4 else FULL
        ),
    )


ARCHITECTURES: Mapping[str, Family] = {
    "Gemma2ForCausalLM": Family(config=_gemma2, norms_from_one=True),
    "Gemma3ForCausalLM": Family(config=_gemma3, norms_from_one=True),
    "Gemma3ForConditionalGeneration": Family(
        config=_gemma3_with_images,
        norms_from_one=True,
        prefixes={
            "language_model.model.": "model.",
            "model.language_model.": "model.",
            "language_model.lm_head.": "lm_head.",
        },
        other_parts=("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
    ),
    "GemmaForCausalLM": Family(config=_gemma, norms_from_one=True),
    "GraniteForCausalLM": Family(config=_granite),
    "InternLM3ForCausalLM": Family(config=_internlm3),
    "LlamaForCausalLM": Family(config=_llama),
    "MinistralForCausalLM": Family(config=_ministral),
    "MistralForCausalLM": Family(config=_mistral),
    "Olmo2ForCausalLM": Family(config=_olmo2),
    "Olmo3ForCausalLM": Family(config=_olmo3),
    "Phi3ForCausalLM": Family(config=_phi3),
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
    for setting in ("rope_interleaved", "add_cross_attention", "use_bidirectional_attention"):
        settings.neutral(setting, False)
    return ARCHITECTURES[name]


def _all_but_every(period: int) -> Callable[[int], str]:
    """Windows everywhere but in every `period`-th layer."""
    return lambda layer: SLIDING if (layer + 1) % max(period, 1) else FULL


def _qwen_windows(settings: Settings) -> tuple[int | None, ...]:
    """The last layers have the window, if it is switched on."""
    window = fields.window(settings, 4096) if settings.boolean("use_sliding_window") else None
    first = settings.integer("max_window_layers", 28)
    return fields.windows(settings, window, lambda layer: SLIDING if layer >= first else FULL)


def _layers_without_positions(settings: Settings) -> tuple[int, ...]:
    """The layers that have a 0 in `no_rope_layers`; without the list, one in every `no_rope_layer_interval`."""
    num_layers = settings.integer("num_hidden_layers")
    listed = settings.items("no_rope_layers")
    if listed is None:
        interval = max(settings.integer("no_rope_layer_interval", 4), 1)
        return tuple(range(interval - 1, min(num_layers, MOST_LAYERS), interval))
    if len(listed) < num_layers or any(each not in (0, 1) for each in listed):
        raise settings.unexpected("no_rope_layers", f"0 or 1 for each of {num_layers} layers")
    return tuple(layer for layer in range(num_layers) if not listed[layer])


def _gemma_sizes(settings: Settings) -> dict[str, Any]:
    return fields.sizes(
        settings, tied=True, head_dim=256, activation="gelu_pytorch_tanh", activation_key="hidden_activation"
    )


def _root_scale(settings: Settings) -> float:
    scalar = settings.number("query_pre_attn_scalar", 256.0)
    if scalar <= 0:
        raise settings.unexpected("query_pre_attn_scalar", "a positive number")
    return 1 / math.sqrt(scalar)
