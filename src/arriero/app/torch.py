"""A model on the torch engine."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from arriero.app.adapters import main_tokenizer, read_vocabulary
from arriero.app.engines import Choice, require_torch
from arriero.app.served import fingerprint_of, serve_runner
from arriero.errors import ConfigError, ModelLoadError
from arriero.machine import physical_cores
from arriero.models.card import ModelCard, decoder_tasks
from arriero.models.decoders.layout import identity
from arriero.models.sources.download import Progress
from arriero.models.sources.resolve import Resolved, resolve
from arriero.pool import ServedModel
from arriero.text.chat import ChatTemplate, plain_template

if TYPE_CHECKING:
    from arriero.config import Settings

logger = logging.getLogger(__name__)


def torch_model(
    settings: Settings, resolved: Resolved, choice: Choice, on_download: Progress | None = None
) -> ServedModel:
    """The model in a directory, loaded by transformers, with the adapter of --lora-model.

    Raises:
        ModelLoadError: torch is not installed, or the model cannot be loaded.
        ConfigError: the settings do not fit the model or the machine.
    """
    require_torch(choice, resolved.path)
    if settings.lora:
        raise ConfigError(
            f"--lora is for the onnx engine; with torch, give one adapter with --lora-model. {choice.reason}"
        )
    adapter = resolve(settings.lora_model, settings.cache, on_download).path if settings.lora_model else None
    from arriero.runners.torch import load_runner

    vocabulary = read_vocabulary(main_tokenizer(settings, resolved.path, adapter), resolved.path)
    tokenizer, template = vocabulary.tokenizer, vocabulary.template
    loaded = load_runner(
        resolved.path,
        weights=settings.weights,
        slots=settings.slots,
        context=settings.context,
        threads=settings.threads or physical_cores(),
        gpus=settings.gpus,
        trust_remote_code=settings.trust_remote_code,
        adapter=adapter,
        num_tokens=tokenizer.vocab_size,
    )
    if (adapter or settings.tokenizer_path) and tokenizer.vocab_size > loaded.runner.info.vocab_size:
        raise ModelLoadError(
            f"{vocabulary.path}: the tokenizer has {tokenizer.vocab_size} tokens, the model "
            f"{loaded.runner.info.vocab_size}."
        )
    chat = None if template is None else ChatTemplate(template, tokenizer)
    if chat is None and loaded.description.source_context:
        chat = plain_template(tokenizer)
    card = ModelCard(
        name=settings.model_name or resolved.name,
        source=str(resolved.path),
        family=loaded.description.family,
        parameters=loaded.parameters,
        context=loaded.description.context,
        vocab_size=loaded.runner.info.vocab_size,
        source_format=loaded.source_format,
        weights=loaded.weights,
        invariant=loaded.runner.info.invariant,
        tasks=decoder_tasks(chats=chat is not None, embeds=bool(loaded.runner.info.hidden_size)),
        engine="torch",
        engine_reason=choice.reason,
        batched=loaded.batched,
    )
    logger.info(
        "%s runs on the torch engine (%s, %s%s). %s",
        card.name,
        loaded.device,
        loaded.weights,
        "" if loaded.batched else ", one answer at a time",
        choice.reason,
    )
    return serve_runner(
        settings,
        loaded.runner,
        card,
        tokenizer,
        chat,
        fingerprint_of(
            _identity(resolved.path),
            _identity(adapter) if adapter else "",
            *vocabulary.facts,
            loaded.weights,
            loaded.device,
            version("torch"),
            version("transformers"),
        ),
        loaded.memory,
    )


def _identity(path: Path) -> str:
    """Digest of a directory's files, as of a checkpoint's."""
    return identity(sorted(file for file in path.iterdir() if file.is_file()))
