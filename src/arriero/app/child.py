"""A model in a process of its own, and how the server gets hold of it.

The child loads what the settings name and sends the model, without its engine: the parent has its own half in its
place. So the parent needs nothing that loads models, and what loads them is written once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from arriero.app import COMMAND, load
from arriero.app.transfer import unpickled
from arriero.config import Settings
from arriero.engine.process.supervisor import ProcessEngine

if TYPE_CHECKING:
    from arriero.models.sources.download import Progress
    from arriero.pool import ServedModel


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
    hear = {"download": on_download, "convert": on_convert}

    def on_progress(content: tuple[str, int, Any]) -> None:
        what, done, total = content
        listener: Callable[[int, Any], None] | None = hear[what]
        if listener:
            listener(done, total)

    engine = ProcessEngine(COMMAND, settings, on_progress=on_progress)
    await engine.start()
    return await asyncio.to_thread(unpickled, engine.about, engine)
