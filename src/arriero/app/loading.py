"""From settings to a model with an engine of this process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from arriero.app.adapters import constraints_of, open_adapters, read_vocabularies, with_variants
from arriero.app.engines import Choice, choose_engine, is_encoder
from arriero.app.pickles import without_pickles
from arriero.app.served import fingerprint_of, serve_runner
from arriero.compute import Runner
from arriero.errors import ConfigError
from arriero.machine import physical_cores
from arriero.models.calibration import calibration
from arriero.models.card import ModelCard, decoder_tasks, num_parameters
from arriero.models.checkpoint import open_checkpoint
from arriero.models.files.gguf_file import open_gguf
from arriero.models.sources.download import Progress
from arriero.models.sources.resolve import Resolved, resolve
from arriero.models.tokenizers.tokenizer import Tokenizer
from arriero.pool import ServedModel
from arriero.text import alpaca

if TYPE_CHECKING:
    from arriero.config import Settings

logger = logging.getLogger(__name__)

AUTO_WEIGHTS: Literal["int8"] = "int8"
"""The fastest format whose answers do not depend on what else runs."""
NATIVE_GUESSES = 7
"""Tokens guessed ahead where nobody says how many; eight are computed together in twice the time of one."""


def load(
    settings: Settings, *, on_download: Progress | None = None, on_convert: Callable[[int, int], None] | None = None
) -> ServedModel:
    """The model that `settings` name, after everything slow: download, conversion, opening the weights.

    Its engine is yet to be started. `on_download` hears of bytes, `on_convert` of layers: how many are done, and of
    how many.

    Raises:
        ModelLoadError: the model is not there, damaged or not supported.
        ConfigError: the settings do not fit the model, or the script cannot be read.
    """
    model = opened(settings.in_plain_words(), on_download, on_convert)
    model.build()
    return model


def opened(
    settings: Settings,
    on_download: Progress | None,
    on_convert: Callable[[int, int], None] | None,
    on_tokenizer: Callable[[Tokenizer], None] = lambda _: None,
) -> ServedModel:
    """The same for settings in plain words, with tokenizers and templates that are yet to be built.

    `on_tokenizer` hears of them as soon as they are read: whoever builds them can begin while the weights are opened.
    """
    model = _opened(settings, on_download, on_convert, on_tokenizer)
    return model if settings.profile == "openai" else _as_alpaca(model)


def _as_alpaca(model: ServedModel) -> ServedModel:
    """The same model, asked as Alpaca models are asked."""
    if "completion" not in model.card.tasks:
        return model
    return replace(
        model,
        card=replace(model.card, tasks=tuple(dict.fromkeys(("completion", "chat", *model.card.tasks)))),
        template=alpaca.chat_template(model.tokenizer),
        fingerprint=fingerprint_of(model.fingerprint, "alpaca"),
        variants=tuple(map(_as_alpaca, model.variants)),
    )


def _opened(
    settings: Settings,
    on_download: Progress | None,
    on_convert: Callable[[int, int], None] | None,
    on_tokenizer: Callable[[Tokenizer], None],
) -> ServedModel:
    # Of all kinds of models one is opened; to import what the others need takes longer than to open it.
    if settings.engine == "scripted":
        from arriero.app.script import scripted_model

        return scripted_model(settings)
    for name in ("script", "pace"):
        if getattr(settings, name):
            raise ConfigError(f"--{name} is for --engine scripted, and the engine is {settings.engine}")
    resolved = resolve(settings.model, settings.cache, on_download, code=settings.trust_remote_code)
    _header = open_gguf(resolved.path) if resolved.path.is_file() else None  # held, so that it is read once
    choice = choose_engine(
        resolved.path,
        engine=settings.engine,
        weights=settings.weights,
        gpus=settings.gpus,
        adapters=bool(settings.lora or settings.lora_model),
    )
    if settings.speculation and (choice.engine == "torch" or is_encoder(resolved.path)):
        raise ConfigError("--speculation is for models that write text on the native and onnx engines")
    if choice.engine == "torch":
        from arriero.app.torch import torch_model

        return torch_model(settings, resolved, choice, on_download)
    readable = replace(resolved, path=without_pickles(resolved.path, settings.cache, on_convert))
    if is_encoder(readable.path):
        from arriero.app.encoder import encoder_model

        return encoder_model(settings, readable, choice, on_convert)
    return _decoder_model(settings, readable, choice, on_download, on_convert, on_tokenizer)


def _decoder_model(
    settings: Settings,
    resolved: Resolved,
    choice: Choice,
    on_download: Progress | None,
    on_convert: Callable[[int, int], None] | None,
    on_tokenizer: Callable[[Tokenizer], None],
) -> ServedModel:
    checkpoint = open_checkpoint(resolved.path)
    context = _context(settings, checkpoint.config.context)
    adapters = open_adapters(settings, checkpoint, on_download)
    vocabularies = read_vocabularies(settings, resolved.path, adapters, checkpoint.config.vocab_size)
    for tokenizer in dict.fromkeys(each.tokenizer for each in vocabularies):
        on_tokenizer(tokenizer)
    vocabulary = vocabularies[1 if settings.lora_model else 0]
    weights = AUTO_WEIGHTS if settings.weights == "auto" else settings.weights
    if weights == "bf16" or weights == "fp16":  # mypy understands no other way
        raise AssertionError("The choice of an engine sends these to torch.")
    if settings.speculation and (adapters or (weights == "int4" and choice.engine == "onnx")):
        raise ConfigError("--speculation needs weights in int8 or fp32, or the native engine, and no adapters")
    guesses = settings.speculation
    if guesses is None:
        guesses = NATIVE_GUESSES if choice.engine == "native" else 0
    options: dict[str, Any] = {
        "weights": weights,
        "slots": settings.slots,
        "context": context,
        "threads": settings.threads or physical_cores(),
        "cache": settings.cache,
        "calibration": calibration(vocabularies[0].tokenizer, checkpoint.config.context, checkpoint.config.vocab_size),
        "guesses": guesses,
        "progress": on_convert,
    }
    # Either takes a while to import.
    if choice.engine == "native":
        from arriero.runners import native

        runner: Runner = native.load_runner(checkpoint, **options)
        computation = ["native"]
    else:
        from importlib.metadata import version

        from arriero.runners import onnx
        from arriero.runners.onnx.probe import signed_weights_are_exact

        runner = onnx.load_runner(checkpoint, adapters=[each.adapter for each in adapters], **options)
        computation = [f"signed {signed_weights_are_exact()}" if weights == "int8" else "", version("onnxruntime")]
    card = ModelCard(
        name=settings.model_name or resolved.name,
        source=str(resolved.path),
        family=checkpoint.config.family,
        parameters=num_parameters(checkpoint.config),
        context=checkpoint.config.context,
        vocab_size=(adapters[0].adapter if settings.lora_model else checkpoint).config.vocab_size,
        source_format=checkpoint.source_format,
        weights=weights,
        invariant=runner.info.invariant,
        tasks=decoder_tasks(chats=vocabulary.template is not None, embeds=bool(runner.info.hidden_size)),
        engine=choice.engine,
        engine_reason=choice.reason,
    )
    logger.info("%s runs on the %s engine (cpu, %s). %s", card.name, choice.engine, weights, choice.reason)
    model = serve_runner(
        settings,
        runner,
        card,
        vocabulary.tokenizer,
        vocabulary.chat,
        fingerprint_of(
            checkpoint.identity,
            *vocabulary.facts,
            weights,
            *computation,
        ),
        constraints=constraints_of([each.tokenizer for each in vocabularies]),
    )
    return with_variants(model, adapters, vocabularies[1:])


def _context(settings: Settings, trained: int) -> int:
    if settings.context > trained:
        raise ConfigError(f"--context is {settings.context}, but this model is computed for {trained} tokens at most")
    return settings.context or trained
