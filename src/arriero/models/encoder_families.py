"""Encoder families: what their config.json says, and what their checkpoints call the tensors.

A family is one entry of `FAMILIES`. Names and defaults are those of transformers' models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from arriero.errors import UnsupportedModel
from arriero.models.encoder_config import Activation, EncoderConfig, Head
from arriero.models.json_files import Settings, brief

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
    return FAMILIES[name]


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
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")

FAMILIES: Mapping[str, Family] = {
    "bert": Family(
        prefix="bert.",
        configure=_bert,
        modules={**_BERT, "head.dense": ("pooler.dense",), "head.out": ("classifier",)},
        unused=(*_BUFFERS, "pooler.", "cls.", "classifier."),
    ),
}
"""Every family by the model_type in its config.json."""

_HeadPooling = Literal["cls", "mean"]


def head_of(settings: Settings, family: Family) -> Head:
    """The classification head of a `...ForSequenceClassification` model."""
    labels = settings.values.get("id2label")
    if labels is None:
        count = settings.integer("num_labels", 2)
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
