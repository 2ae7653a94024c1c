"""What can be told of a model from its files, before it is loaded."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.architecture import DecoderConfig
from arriero.models.card import Task, decoder_tasks, encoder_tasks, num_parameters
from arriero.models.checkpoint import open_checkpoint
from arriero.models.encoders.encoder import open_encoder
from arriero.models.files.gguf_file import open_gguf
from arriero.models.files.json_files import read_json
from arriero.models.files.safetensors_files import open_weights
from arriero.models.kind import kind_of
from arriero.models.tokenizers.metadata import read_text_metadata

Value = TypeVar("Value")

BYTES_PER_WEIGHT = {"fp32": 4.0, "int8": 1.0, "int4": 0.625}
"""What a weight takes in memory in each format; int4 with its scales."""
_CACHED_BYTES = 4
"""Of one number among the keys and values, which are float32."""
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The facts about a model on disk; None for what its files do not tell."""

    family: str | None
    parameters: int | None
    context: int | None
    vocab_size: int | None
    source_format: str | None
    """How most of the weights are stored."""
    has_chat_template: bool
    tasks: tuple[Task, ...] = ()
    """What it can be asked for, as far as that is known."""
    bytes_per_token: int | None = None
    """Memory that keys and values of one token take."""


def describe(path: Path) -> Description:
    """The facts about the GGUF file or directory at `path`; raises `ModelLoadError` where it is missing or damaged."""
    template = read_text_metadata(path).chat_template is not None
    try:
        if kind_of(path) == "encoder":
            return _of_encoder(path)
        checkpoint = open_checkpoint(path)
    except UnsupportedModel:
        return _from_gguf(path, template) if path.is_file() else _from_directory(path, template)
    config = checkpoint.config
    return Description(
        family=config.family,
        parameters=num_parameters(config),
        context=config.context,
        vocab_size=config.vocab_size,
        source_format=checkpoint.source_format,
        has_chat_template=template,
        tasks=decoder_tasks(chats=template, embeds=True),
        bytes_per_token=bytes_per_token(config),
    )


def _of_encoder(path: Path) -> Description:
    checkpoint = open_encoder(path)
    return Description(
        family=checkpoint.config.family,
        parameters=checkpoint.parameters,
        context=checkpoint.context,
        vocab_size=checkpoint.config.vocab_size,
        source_format=checkpoint.source_format,
        has_chat_template=False,
        tasks=encoder_tasks(checkpoint.task),
    )


def bytes_per_token(config: DecoderConfig) -> int:
    """Memory that keys and values of one token take in float32."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * _CACHED_BYTES


def _from_directory(path: Path, template: bool) -> Description:
    """What every config.json says, of whatever architecture."""
    config = read_json(path / "config.json")
    text = config.get("text_config")
    values: dict[str, Any] = {**config, **text} if isinstance(text, dict) else config
    try:
        weights = [(weight.dtype, weight.shape) for weight in open_weights(path).values()]
    except ModelLoadError:  # of a form or type that is not read here; another engine may
        weights = []
    return Description(
        family=_typed(config.get("model_type"), str),
        parameters=sum(math.prod(shape) for _, shape in weights) or None,
        context=next((number for key in _CONTEXTS if (number := _typed(values.get(key), int))), None),
        vocab_size=_typed(values.get("vocab_size"), int),
        source_format=_most(weights),
        has_chat_template=template,
        tasks=_tasks(path, template),
    )


def _tasks(path: Path, template: bool) -> tuple[Task, ...]:
    """What the torch engine would do with it; an encoder-decoder needs no template to be talked to."""
    chats = kind_of(path) == "encoder-decoder"
    return decoder_tasks(chats=template or chats, embeds=not chats)


def _from_gguf(path: Path, template: bool) -> Description:
    file = open_gguf(path)
    family = _typed(file.fields.get("general.architecture"), str)
    try:
        weights = [(tensor.type.name, tensor.shape) for tensor in file.tensors.values()]
    except UnsupportedModel:
        weights = []
    tokens = file.fields.get("tokenizer.ggml.tokens")
    return Description(
        family=family,
        parameters=sum(math.prod(shape) for _, shape in weights) or None,
        context=_typed(file.fields.get(f"{family}.context_length"), int),
        vocab_size=len(tokens) if isinstance(tokens, list) else None,
        source_format=_most(weights),
        has_chat_template=template,
    )


def _most(weights: list[tuple[str, tuple[int, ...]]]) -> str | None:
    counts: Counter[str] = Counter()
    for kind, shape in weights:
        counts[kind] += math.prod(shape)
    return counts.most_common(1)[0][0] if counts else None


def _typed(value: Any, kind: type[Value]) -> Value | None:
    return value if type(value) is kind else None
