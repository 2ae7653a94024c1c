"""What a loaded model is and can do, for people and for the API."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from arriero.models.architecture import DecoderConfig
from arriero.models.decoders.layout import tensor_shapes

Task = Literal["completion", "chat", "embedding", "rerank", "score"]
VECTOR_TASKS: tuple[Task, ...] = ("embedding", "rerank", "score")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """The facts about one loaded model."""

    name: str
    source: str
    """The file or directory that the weights came from."""
    family: str
    parameters: int
    """Weights, counted once where the embeddings are tied."""
    context: int
    """Tokens that the model was made for."""
    vocab_size: int
    source_format: str
    """How most of the weights are stored in the source, e.g. `Q4_1` or `BF16`."""
    weights: str
    """How they are computed with: `fp32`, `bf16`, `fp16`, `int8` or `int4`."""
    invariant: bool
    """True when an answer does not depend on what else runs."""
    tasks: tuple[Task, ...]
    """What the model can be asked for."""
    engine: str = "onnx"
    """`onnx`, `torch` or `scripted`."""
    engine_reason: str = ""
    """Why this engine, in one sentence."""
    batched: bool = True
    """False where answers are computed one after the other, because the model knows no other way."""


def decoder_tasks(*, chats: bool, embeds: bool) -> tuple[Task, ...]:
    """What a decoder can be asked for; what embeds can also tell how near texts are."""
    tasks: tuple[Task, ...] = ("completion", "chat") if chats else ("completion",)
    return (*tasks, *VECTOR_TASKS) if embeds else tasks


def encoder_tasks(task: Literal["embed", "score"]) -> tuple[Task, ...]:
    """What an encoder can be asked for; a classification head scores pairs, and that alone."""
    return VECTOR_TASKS if task == "embed" else ("rerank", "score")


def num_parameters(config: DecoderConfig) -> int:
    """Weights of a model of this configuration."""
    return sum(math.prod(shape) for _, shape in tensor_shapes(config))
