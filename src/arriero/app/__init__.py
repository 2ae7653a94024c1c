"""The composition root: settings in, a served model and an ASGI application out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from arriero import __version__
from arriero.api.application import application
from arriero.api.generation import Delivery
from arriero.api.limits import Limits
from arriero.api.profile import PROFILES
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
from arriero.text import alpaca
from arriero.text.chat import ChatTemplate
from arriero.text.stop import stop_constraints
from arriero.wire.headers import Application

KEY_VALUE_SHARE = 0.5
"""How much of the memory that is left beside the weights keys and values may take, unless settings say otherwise."""
AUTO_WEIGHTS: Literal["int8"] = "int8"
"""The fastest format whose answers do not depend on what else runs."""
ALPACA_NAME = "chinese-llama-alpaca"
"""What a model of the Alpaca profile is called unless settings say otherwise."""
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
    if settings.profile == "alpaca" and settings.model_name is None:
        settings = settings.model_copy(update={"model_name": ALPACA_NAME})
    model = (
        scripted_model(settings) if settings.engine == "scripted" else _onnx_model(settings, on_download, on_convert)
    )
    return model if settings.profile == "openai" else _as_alpaca(model)


def create_app(settings: Settings, model: ServedModel) -> Application:
    """The application that answers for `model`, whose engine the caller starts and closes."""
    limits = Limits(
        max_prompt=settings.completion_max_prompt,
        max_tokens=settings.completion_max_tokens,
        max_n=settings.completion_max_n,
        max_logprobs=settings.completion_max_logprobs,
    )
    delivery = Delivery(profile=PROFILES[settings.profile], limits=limits, body_limit=settings.body_limit)
    return application(Pool([model]), delivery=delivery)


def _as_alpaca(model: ServedModel) -> ServedModel:
    """The same model, asked as Alpaca models are asked."""
    return replace(
        model,
        card=replace(model.card, has_chat_template=True),
        template=alpaca.chat_template(model.tokenizer),
        fingerprint=_fingerprint(model.fingerprint, "alpaca"),
    )


def _onnx_model(
    settings: Settings, on_download: Progress | None, on_convert: Callable[[int, int], None] | None
) -> ServedModel:
    # onnxruntime takes a while to import
    from arriero.runners.onnx import load_runner
    from arriero.runners.onnx.probe import signed_weights_are_exact

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
            prefix_tokens=settings.prefix_cache,
        ),
        tokenizer=tokenizer,
        template=None if template is None else ChatTemplate(template, tokenizer),
        fingerprint=_fingerprint(
            checkpoint.identity,
            _vocabulary(resolved.path),
            template or "",
            weights,
            f"signed {signed_weights_are_exact()}" if weights == "int8" else "",
            version("onnxruntime"),
        ),
    )


def _context(settings: Settings, trained: int) -> int:
    if settings.context > trained:
        raise ConfigError(f"--context is {settings.context}, but the model was made for {trained} tokens at most")
    return settings.context or trained


def _token_budget(info: RunnerInfo) -> int:
    """Tokens whose keys and values fit the memory at hand; at least one full slot, at most all of them."""
    fitting = int(KEY_VALUE_SHARE * available_memory() / info.bytes_per_token)
    return min(max(fitting, info.context), info.num_slots * info.context)


def _vocabulary(path: Path) -> str:
    """The tokenizer of a directory, which the checkpoint's identity does not cover; a GGUF file holds its own."""
    file = path / "tokenizer.json"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _fingerprint(*facts: str) -> str:
    """Another one for whatever may change what the same request with the same seed is answered."""
    return "fp_" + hashlib.sha256("\n".join((__version__, *facts)).encode()).hexdigest()[:10]
