"""A model in a process of its own, and how the server gets hold of it.

The child loads what the settings name and sends the model, without its engine: the parent has its own half in its
place. So the parent needs nothing that loads models, and what loads them is written once.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from arriero.app import COMMAND, load
from arriero.app.transfer import unpickled
from arriero.config import Settings
from arriero.config_description import group
from arriero.engine.process.supervisor import ProcessEngine

if TYPE_CHECKING:
    from arriero.models.sources.download import Progress
    from arriero.models.tokenizers.tokenizer import Tokenizer
    from arriero.pool import ServedModel

_OF_MODELS = ("Model", "Engine", "Scripted engine")
"""Groups of the settings that say what a model is and how it computes."""


async def open_model(
    settings: Settings, *, on_download: Progress | None = None, on_convert: Callable[[int, int], None] | None = None
) -> ServedModel:
    """The model that `settings` name, its engine started; arguments and errors as `arriero.app.load`.

    The engine computes in a process of its own; a scripted one, which computes nothing, in this process.
    """
    if settings.engine == "scripted":
        model = load(settings)
        await model.engine.start()
        return model
    return await _open_in_child(settings, on_download, on_convert)


async def _open_in_child(
    settings: Settings, on_download: Progress | None, on_convert: Callable[[int, int], None] | None
) -> ServedModel:
    tokenizers: list[asyncio.Future[Tokenizer]] = []

    def build(number: int, data: bytes) -> None:
        if number == len(tokenizers):  # a process that is started again tells the same once more
            tokenizers.append(asyncio.ensure_future(asyncio.to_thread(_built, data)))

    hear = {"download": on_download, "convert": on_convert, "tokenizer": build}

    def on_progress(content: tuple[str, int, Any]) -> None:
        what, done, total = content
        listener: Callable[[int, Any], None] | None = hear[what]
        if listener:
            listener(done, total)

    order = _order(settings)
    name = order.model_name or order.model or "the default model"
    engine = ProcessEngine(COMMAND, order, name=name, on_progress=on_progress)
    try:
        await engine.start()
        model = unpickled(engine.about, engine, await asyncio.gather(*tokenizers))
        await asyncio.to_thread(model.build)
    except BaseException:
        await engine.close()
        await asyncio.gather(*tokenizers, return_exceptions=True)
        raise
    return model


def _order(settings: Settings) -> SimpleNamespace:
    """The settings that the process needs, which are no secrets, in a form that needs nothing to be imported."""
    settings = settings.in_plain_words()
    named = (name for name, field in Settings.model_fields.items() if group(field) in _OF_MODELS or name == "profile")
    return SimpleNamespace(**{name: getattr(settings, name) for name in named})


def _built(data: bytes) -> Tokenizer:
    tokenizer: Tokenizer = pickle.loads(data)
    tokenizer.build()
    return tokenizer
