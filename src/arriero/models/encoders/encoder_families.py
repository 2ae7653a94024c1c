"""Encoder families: what their config.json says, and what their checkpoints call the tensors.

A family is one entry of `FAMILIES`. Names and defaults are those of transformers' models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from arriero.errors import UnsupportedModel
from arriero.models.encoders.encoder_config import Activation, EncoderConfig, Head, checked_size
from arriero.models.files.json_files import Settings, brief

RELATIVE_BUCKETS = 32
"""Of MPNet; transformers computes no other number."""
_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True, slots=True)
class Family:
    """One family's configuration and names."""

    prefix: str
    """What stands before the names of the body's tensors in checkpoints with a head."""
    configure: Callable[[Settings], EncoderConfig]
    """Raises `ModelLoadError` for a configuration that is damaged or asks for something else."""
    modules: Mapping[str, tuple[str, ...]]
    """By our name, with `N` for a layer's number, the modules whose tensors make it up, joined along their rows."""
    unused: tuple[str, ...]
    """How the names of tensors begin that the body does not need: other heads, buffers."""
    classify: Callable[[Settings], Mapping[str, Any]] = lambda settings: {"activation": "tanh"}
    """What the family's classification head is like, as arguments of `Head`."""


def family_of(settings: Settings) -> Family:
    """The family that config.json names; raises `UnsupportedModel` for another."""
    settings.neutral("quantization_config")
    name = settings.values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedModel(f"{settings.file}: the model type is {brief(name)}, Arriero runs the encoders {known}.")
    return _FIRST_NOMIC if name == "nomic_bert" and "n_embd" in settings.values else FAMILIES[name]


def activation(settings: Settings, name: str, default: str) -> Activation:
    """The activation function that a setting names."""
    value = settings.values.get(name) or default
    if not isinstance(value, str) or value not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise UnsupportedModel(f"{settings.file}: {name} is {brief(value)}, Arriero computes {known}.")
    return _ACTIVATIONS[value]


def _bert(settings: Settings, family: str = "bert", padding_id: int | None = None) -> EncoderConfig:
    settings.neutral("position_embedding_type", "absolute")
    settings.neutral("is_decoder", False)
    settings.neutral("add_cross_attention", False)
    positions = settings.integer("max_position_embeddings", 512)
    return EncoderConfig(
        family=family,
        num_layers=settings.integer("num_hidden_layers", 12),
        hidden_size=settings.integer("hidden_size", 768),
        intermediate_size=settings.integer("intermediate_size", 3072),
        num_heads=settings.integer("num_attention_heads", 12),
        vocab_size=settings.integer("vocab_size"),
        context=positions - (0 if padding_id is None else padding_id + 1),
        norm_epsilon=settings.number("layer_norm_eps", 1e-12),
        activation=activation(settings, "hidden_act", "gelu"),
        num_positions=positions,
        padding_id=padding_id,
        num_types=settings.integer("type_vocab_size", 2),
    )


def _roberta(settings: Settings) -> EncoderConfig:
    return _bert(settings, "roberta", settings.integer("pad_token_id", 1))


def _xlm_roberta(settings: Settings) -> EncoderConfig:
    return _bert(settings, "xlm-roberta", settings.integer("pad_token_id", 1))


def _distilbert(settings: Settings) -> EncoderConfig:
    positions = settings.integer("max_position_embeddings", 512)
    return EncoderConfig(
        family="distilbert",
        num_layers=settings.integer("n_layers", 6),
        hidden_size=settings.integer("dim", 768),
        intermediate_size=settings.integer("hidden_dim", 3072),
        num_heads=settings.integer("n_heads", 12),
        vocab_size=settings.integer("vocab_size"),
        context=positions,
        norm_epsilon=1e-12,
        activation=activation(settings, "activation", "gelu"),
        num_positions=positions,
    )


def _mpnet(settings: Settings) -> EncoderConfig:
    settings.neutral("relative_attention_num_buckets", RELATIVE_BUCKETS)
    # Its padding token is fixed in transformers, whatever the configuration says.
    config = _bert(Settings(settings.file, {**settings.values, "type_vocab_size": 0}), "mpnet", padding_id=1)
    return replace(config, relative_buckets=RELATIVE_BUCKETS)


def _modernbert(settings: Settings) -> EncoderConfig:
    layers = checked_size(settings.file, "num_layers", settings.integer("num_hidden_layers", 22))
    every = max(1, settings.integer("global_attn_every_n_layers", 3))
    kinds = settings.values.get("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if layer % every else "full_attention" for layer in range(layers)]
    known = ("sliding_attention", "full_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in known for kind in kinds):
        raise settings.unexpected("layer_types", "full_attention or sliding_attention for each layer")
    local = frozenset(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")
    return EncoderConfig(
        family="modernbert",
        num_layers=layers,
        hidden_size=settings.integer("hidden_size", 768),
        intermediate_size=settings.integer("intermediate_size", 1152),
        num_heads=settings.integer("num_attention_heads", 12),
        vocab_size=settings.integer("vocab_size"),
        context=settings.integer("max_position_embeddings", 8192),
        norm_epsilon=settings.number("norm_eps", 1e-5),
        activation=activation(settings, "hidden_activation", "gelu"),
        pre_norm=True,
        gated=True,
        attention_bias=settings.boolean("attention_bias"),
        mlp_bias=settings.boolean("mlp_bias"),
        norm_bias=settings.boolean("norm_bias"),
        rope_theta=_rope_theta(settings, "full_attention", "global_rope_theta", 160_000.0),
        local_rope_theta=_rope_theta(settings, "sliding_attention", "local_rope_theta", 10_000.0),
        local_layers=local,
        local_reach=settings.integer("local_attention", 128) // 2,
    )


def _modernbert_head(settings: Settings) -> Mapping[str, Any]:
    pooling = settings.values.get("classifier_pooling") or "cls"
    if pooling not in ("cls", "mean"):
        raise settings.unexpected("classifier_pooling", "cls or mean")
    return {
        "activation": activation(settings, "classifier_activation", "gelu"),
        "pooling": pooling,
        "norm": True,
        "bias": settings.boolean("classifier_bias"),
    }


def _nomic(settings: Settings) -> EncoderConfig:
    return EncoderConfig(
        family="nomic_bert",
        num_layers=settings.integer("num_hidden_layers", 12),
        hidden_size=settings.integer("hidden_size", 768),
        intermediate_size=settings.integer("intermediate_size", 3072),
        num_heads=settings.integer("num_attention_heads", 12),
        vocab_size=settings.integer("vocab_size"),
        context=settings.integer("max_position_embeddings", 2048),
        norm_epsilon=settings.number("layer_norm_eps", 1e-12),
        activation=activation(settings, "hidden_act", "silu"),
        num_types=settings.integer("type_vocab_size", 2),
        gated=True,
        attention_bias=False,
        mlp_bias=False,
        rope_theta=_rope_theta(settings, None, "rope_theta", 1000.0),
    )


def _first_nomic(settings: Settings) -> EncoderConfig:
    """The configuration of the repositories whose code came with them, before transformers knew the family."""
    for switch in ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "prenorm", "causal", "parallel_block"):
        settings.neutral(switch, False)
    settings.neutral("rotary_emb_interleaved", False)
    settings.neutral("use_rms_norm", False)
    settings.neutral("rotary_emb_fraction", 1, 1.0)
    settings.neutral("activation_function", "swiglu")
    context = settings.integer("n_positions", 2048)
    if settings.values.get("rotary_scaling_factor"):  # beyond what it was trained for it would turn otherwise
        context = min(context, settings.integer("max_trained_positions", 2048))
    return EncoderConfig(
        family="nomic_bert",
        num_layers=settings.integer("n_layer"),
        hidden_size=settings.integer("n_embd"),
        intermediate_size=settings.integer("n_inner"),
        num_heads=settings.integer("n_head"),
        vocab_size=settings.integer("vocab_size"),
        context=context,
        norm_epsilon=settings.number("layer_norm_epsilon", 1e-5),
        activation="silu",
        num_types=settings.integer("type_vocab_size", 2),
        gated=True,
        attention_bias=False,
        mlp_bias=False,
        rope_theta=settings.number("rotary_emb_base", 10_000.0),
    )


def _rope_theta(settings: Settings, kind: str | None, older: str, default: float) -> float:
    """The base of the rotary positions of one kind of layers; scaled ones are refused."""
    settings.neutral("rope_scaling")
    parameters = settings.values.get("rope_parameters") or {}
    inner = parameters.get(kind) if isinstance(parameters, dict) and kind else parameters
    if not isinstance(inner, dict | None):
        raise settings.unexpected("rope_parameters", "a JSON object")
    rope = Settings(settings.file, inner or {})
    rope.neutral("rope_type", "default")
    theta = rope.number("rope_theta", settings.number(older, default))
    if not theta > 0:
        raise settings.unexpected("rope_parameters", "a positive rope_theta")
    return theta


_EMBEDDINGS = {
    "embeddings.word": ("embeddings.word_embeddings",),
    "embeddings.position": ("embeddings.position_embeddings",),
    "embeddings.type": ("embeddings.token_type_embeddings",),
    "embeddings.norm": ("embeddings.LayerNorm",),
}
_BERT_MLP = {
    "layers.N.mlp.inner": ("encoder.layer.N.intermediate.dense",),
    "layers.N.mlp.output": ("encoder.layer.N.output.dense",),
    "layers.N.mlp.norm": ("encoder.layer.N.output.LayerNorm",),
}
_BERT = {
    **_EMBEDDINGS,
    "layers.N.attention.qkv": tuple(f"encoder.layer.N.attention.self.{part}" for part in ("query", "key", "value")),
    "layers.N.attention.output": ("encoder.layer.N.attention.output.dense",),
    "layers.N.attention.norm": ("encoder.layer.N.attention.output.LayerNorm",),
    **_BERT_MLP,
}
_POOLED_HEAD = {"head.dense": ("pooler.dense",), "head.out": ("classifier",)}
_OWN_HEAD = {"head.dense": ("classifier.dense",), "head.out": ("classifier.out_proj",)}
_UNUSED = ("embeddings.position_ids", "embeddings.token_type_ids", "pooler.", "cls.", "lm_head.", "classifier.")


def _roberta_like(configure: Callable[[Settings], EncoderConfig]) -> Family:
    return Family(prefix="roberta.", configure=configure, modules={**_BERT, **_OWN_HEAD}, unused=_UNUSED)


FAMILIES: Mapping[str, Family] = {
    "bert": Family(prefix="bert.", configure=_bert, modules={**_BERT, **_POOLED_HEAD}, unused=_UNUSED),
    "roberta": _roberta_like(_roberta),
    "xlm-roberta": _roberta_like(_xlm_roberta),
    "distilbert": Family(
        prefix="distilbert.",
        configure=_distilbert,
        modules={
            **_EMBEDDINGS,
            "layers.N.attention.qkv": tuple(f"transformer.layer.N.attention.{part}_lin" for part in "qkv"),
            "layers.N.attention.output": ("transformer.layer.N.attention.out_lin",),
            "layers.N.attention.norm": ("transformer.layer.N.sa_layer_norm",),
            "layers.N.mlp.inner": ("transformer.layer.N.ffn.lin1",),
            "layers.N.mlp.output": ("transformer.layer.N.ffn.lin2",),
            "layers.N.mlp.norm": ("transformer.layer.N.output_layer_norm",),
            "head.dense": ("pre_classifier",),
            "head.out": ("classifier",),
        },
        unused=(*_UNUSED, "pre_classifier.", "vocab_"),
        classify=lambda settings: {"activation": "relu"},
    ),
    "mpnet": Family(
        prefix="mpnet.",
        configure=_mpnet,
        modules={
            **_EMBEDDINGS,
            "layers.N.attention.qkv": tuple(f"encoder.layer.N.attention.attn.{part}" for part in "qkv"),
            "layers.N.attention.output": ("encoder.layer.N.attention.attn.o",),
            "layers.N.attention.norm": ("encoder.layer.N.attention.LayerNorm",),
            **_BERT_MLP,
            "relative_bias": ("encoder.relative_attention_bias",),
            **_OWN_HEAD,
        },
        unused=_UNUSED,
    ),
    "modernbert": Family(
        prefix="model.",
        configure=_modernbert,
        modules={
            "embeddings.word": ("embeddings.tok_embeddings",),
            "embeddings.norm": ("embeddings.norm",),
            "layers.N.attention.qkv": ("layers.N.attn.Wqkv",),
            "layers.N.attention.output": ("layers.N.attn.Wo",),
            "layers.N.attention.norm": ("layers.N.attn_norm",),
            "layers.N.mlp.inner": ("layers.N.mlp.Wi",),
            "layers.N.mlp.output": ("layers.N.mlp.Wo",),
            "layers.N.mlp.norm": ("layers.N.mlp_norm",),
            "final_norm": ("final_norm",),
            "head.dense": ("head.dense",),
            "head.norm": ("head.norm",),
            "head.out": ("classifier",),
        },
        unused=("head.", "decoder.", "classifier."),
        classify=_modernbert_head,
    ),
    "nomic_bert": Family(
        prefix="nomic_bert.",
        configure=_nomic,
        modules={
            **_EMBEDDINGS,
            "layers.N.attention.qkv": tuple(f"layers.N.self_attn.{part}_proj" for part in "qkv"),
            "layers.N.attention.output": ("layers.N.self_attn.o_proj",),
            "layers.N.attention.norm": ("layers.N.post_attention_layernorm",),
            "layers.N.mlp.inner": ("layers.N.mlp.gate_proj", "layers.N.mlp.up_proj"),
            "layers.N.mlp.output": ("layers.N.mlp.down_proj",),
            "layers.N.mlp.norm": ("layers.N.post_mlp_layernorm",),
            **_POOLED_HEAD,
        },
        unused=_UNUSED,
    ),
}
"""Every family by the model_type in its config.json."""

_FIRST_NOMIC = Family(
    prefix="bert.",
    configure=_first_nomic,
    modules={
        **_EMBEDDINGS,
        "embeddings.norm": ("emb_ln",),
        "layers.N.attention.qkv": ("encoder.layers.N.attn.Wqkv",),
        "layers.N.attention.output": ("encoder.layers.N.attn.out_proj",),
        "layers.N.attention.norm": ("encoder.layers.N.norm1",),
        "layers.N.mlp.inner": ("encoder.layers.N.mlp.fc12", "encoder.layers.N.mlp.fc11"),
        "layers.N.mlp.output": ("encoder.layers.N.mlp.fc2",),
        "layers.N.mlp.norm": ("encoder.layers.N.norm2",),
        **_POOLED_HEAD,
    },
    unused=_UNUSED,
)


def head_of(settings: Settings, family: Family) -> Head:
    """The classification head of a `...ForSequenceClassification` model."""
    labels = settings.values.get("id2label")
    if labels is None:
        count = checked_size(settings.file, "num_labels", settings.integer("num_labels", 2))
        labels = {str(index): f"LABEL_{index}" for index in range(count)}
    if not isinstance(labels, dict) or not labels or not all(isinstance(label, str) for label in labels.values()):
        raise settings.unexpected("id2label", "a JSON object of texts")
    if labels.keys() != {str(index) for index in range(len(labels))}:
        raise settings.unexpected("id2label", f"keys from 0 to {len(labels) - 1}")
    names = tuple(labels[str(index)] for index in range(len(labels)))
    return Head(labels=names, score_activation=_score_activation(settings, len(names)), **family.classify(settings))


def _score_activation(settings: Settings, num_labels: int) -> Activation:
    """As in sentence-transformers: what the configuration names, else sigmoid where there is one label."""
    newer = settings.values.get("sentence_transformers")
    named = newer.get("activation_fn") if isinstance(newer, dict) else None
    named = named or settings.values.get("sbert_ce_default_activation_function")
    if named is None:
        return "sigmoid" if num_labels == 1 else "identity"
    return torch_activation(settings, named)


def torch_activation(settings: Settings, name: Any) -> Activation:
    """The function that torch's class of this dotted name computes."""
    known: Mapping[str, Activation] = {
        "Identity": "identity",
        "Sigmoid": "sigmoid",
        "Tanh": "tanh",
        "ReLU": "relu",
        "GELU": "gelu",
        "SiLU": "silu",
    }
    module, _, last = str(name).rpartition(".")
    if not module.startswith("torch.nn") or last not in known:
        raise UnsupportedModel(f"{settings.file}: the activation {brief(name)} is not computed by Arriero.")
    return known[last]
