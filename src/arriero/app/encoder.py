"""An encoder: it embeds texts or, with a classification head, scores pairs of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING

from arriero.app.engines import Choice
from arriero.app.served import fingerprint_of, vocabulary_digest
from arriero.engine.encoder import EncodingEngine
from arriero.errors import ConfigError, UnsupportedModel
from arriero.machine import physical_cores
from arriero.models.card import ModelCard, encoder_tasks
from arriero.models.encoders.encoder import EncoderCheckpoint, open_encoder
from arriero.models.sources.resolve import Resolved
from arriero.models.tokenizers.tokenizer import load_tokenizer
from arriero.pool import ServedModel, Vectors

if TYPE_CHECKING:
    from arriero.config import Settings

logger = logging.getLogger(__name__)


def encoder_model(
    settings: Settings, resolved: Resolved, choice: Choice, on_convert: Callable[[int, int], None] | None
) -> ServedModel:
    """The encoder in a directory, on the onnx engine.

    Raises:
        ModelLoadError: it is damaged, or not supported.
        ConfigError: the settings do not fit an encoder.
    """
    # onnxruntime takes a while to import
    from arriero.runners.onnx import load_encoder

    # Vectors are kept and compared with others, so they are computed exactly unless the settings say otherwise.
    weights = "fp32" if settings.weights == "auto" else settings.weights
    if weights != "fp32" and weights != "int8":
        raise ConfigError(f"--weights is {weights}, but encoders compute with fp32 or int8")
    _check(settings, resolved)
    checkpoint = open_encoder(resolved.path)
    if checkpoint.task == "score" and checkpoint.width != 1:
        raise UnsupportedModel(
            f"{resolved.path}: its head has {checkpoint.width} labels; Arriero serves classification heads with one, "
            "which tells how relevant a text is."
        )
    encoder = load_encoder(
        checkpoint,
        weights=weights,
        threads=settings.threads or physical_cores(),
        cache=settings.cache,
        progress=on_convert,
    )
    card = ModelCard(
        name=settings.model_name or resolved.name,
        source=str(resolved.path),
        family=checkpoint.config.family,
        parameters=checkpoint.parameters,
        context=checkpoint.context,
        vocab_size=checkpoint.config.vocab_size,
        source_format=checkpoint.source_format,
        weights=weights,
        invariant=encoder.info.invariant,
        tasks=encoder_tasks(checkpoint.task),
        engine="onnx",
        engine_reason=choice.reason,
    )
    logger.info("%s runs on the onnx engine (cpu, %s). %s", card.name, weights, choice.reason)
    return ServedModel(
        card=card,
        created=int(time.time()),
        engine=EncodingEngine(lambda: encoder, max_queue=settings.max_queue),
        tokenizer=load_tokenizer(resolved.path),
        template=None,
        fingerprint=fingerprint_of(
            checkpoint.identity, vocabulary_digest(resolved.path), weights, version("onnxruntime")
        ),
        vectors=_vectors(checkpoint),
    )


def _check(settings: Settings, resolved: Resolved) -> None:
    if settings.gpus is not None and settings.gpus != "none":
        raise ConfigError(f"--gpus is {settings.gpus}, but encoders run on the onnx engine, which uses the CPU")
    if settings.context:
        raise ConfigError("--context is for models that write text; an encoder has its own")
    if settings.lora_model or settings.lora:
        raise UnsupportedModel(f"{resolved.path}: adapters are for decoders, and this is an encoder.")


def _vectors(checkpoint: EncoderCheckpoint) -> Vectors:
    head, pooling = checkpoint.config.head, checkpoint.pooling
    if head is None:
        return Vectors(width=checkpoint.width, prompts=pooling.prompts, default_prompt=pooling.default_prompt)
    if head.score_activation not in ("identity", "sigmoid"):
        raise UnsupportedModel(f"{checkpoint.path}: Arriero does not make scores with {head.score_activation}.")
    return Vectors(width=1, activation="sigmoid" if head.score_activation == "sigmoid" else "identity")
