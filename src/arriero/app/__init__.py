"""The composition root: settings in, a served model and an ASGI application out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Literal

from arriero import __version__
from arriero.api.application import application
from arriero.api.generation import Delivery
from arriero.app.script import scripted_model
from arriero.config import Settings
from arriero.core import RunnerInfo
from arriero.engine.local import LocalEngine
from arriero.errors import ConfigError
from arriero.machine import available_memory, physical_cores
from arriero.models.calibration import calibration_tokens
from arriero.models.card import ModelCard, num_parameters
from arriero.models.checkpoint import open_checkpoint
from arriero.models.download import Progress
from arriero.models.metadata import read_text_metadata
from arriero.models.resolve import resolve
from arriero.models.tokenizer import load_tokenizer
from arriero.pool import Pool, ServedModel
from arriero.text.chat import ChatTemplate
from arriero.text.stop import stop_constraints
from arriero.wire.headers import Application

KEY_VALUE_SHARE = 0.5
"""How much of the memory that is left beside the weights keys and values may take, unless settings say otherwise."""
AUTO_WEIGHTS: Literal["int8"] = "int8"
"""The fastest format whose answers do not depend on what else runs."""
PROMPT_CHUNK = 512
"""Prompt tokens read in one step while nobody waits for the next token."""


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
    return scripted_model(settings) if settings.engine == "scripted" else _onnx_model(settings, on_download, on_convert)


def create_app(settings: Settings, model: ServedModel) -> Application:
    """The application that answers for `model`, whose engine the caller starts and closes."""
    return application(Pool([model]), delivery=Delivery(body_limit=settings.body_limit))


def _onnx_model(
    settings: Settings, on_download: Progress | None, on_convert: Callable[[int, int], None] | None
) -> ServedModel:
    from arriero.runners.onnx import load_runner  # onnxruntime takes a while to import

    resolved = resolve(settings.model, settings.cache, on_download)
    checkpoint = open_checkpoint(resolved.path)
    context = _context(settings, checkpoint.config.context)
    tokenizer = load_tokenizer(resolved.path)
    template = read_text_metadata(resolved.path).chat_template
    weights = AUTO_WEIGHTS if settings.weights == "auto" else settings.weights
    runner = load_runner(
        checkpoint,
        weights=weights,
        slots=settings.slots,
        context=context,
        threads=settings.threads or physical_cores(),
        cache=settings.cache,
        calibration=calibration_tokens(tokenizer, checkpoint.config.context),
        progress=on_convert,
    )
    card = ModelCard(
        name=settings.model_name or resolved.name,
        source=str(resolved.path),
        family=checkpoint.config.family,
        parameters=num_parameters(checkpoint.config),
        context=checkpoint.config.context,
        vocab_size=checkpoint.config.vocab_size,
        source_format=checkpoint.source_format,
        weights=weights,
        invariant=runner.info.invariant,
        has_chat_template=template is not None,
    )
    return ServedModel(
        card=card,
        created=int(time.time()),
        engine=LocalEngine(
            lambda: runner,
            constraints=stop_constraints(tokenizer),
            token_budget=settings.token_budget or _token_budget(runner.info),
            max_queue=settings.max_queue,
            chunk=max(PROMPT_CHUNK, settings.prefill_chunk),
            chunk_beside_decode=settings.prefill_chunk,
        ),
        tokenizer=tokenizer,
        template=None if template is None else ChatTemplate(template, tokenizer),
        fingerprint=_fingerprint(checkpoint.identity, weights),
    )


def _context(settings: Settings, trained: int) -> int:
    if settings.context > trained:
        raise ConfigError(f"--context is {settings.context}, but the model was made for {trained} tokens at most")
    return settings.context or trained


def _token_budget(info: RunnerInfo) -> int:
    """Tokens whose keys and values fit the memory at hand; at least one full slot, at most all of them."""
    fitting = int(KEY_VALUE_SHARE * available_memory() / info.bytes_per_token)
    return min(max(fitting, info.context), info.num_slots * info.context)


def _fingerprint(*facts: str) -> str:
    return "fp_" + hashlib.sha256("\n".join((__version__, *facts)).encode()).hexdigest()[:10]
