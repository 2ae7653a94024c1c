"""A model in a process of its own: what that process does, and how the server gets hold of the model.

The child loads what the settings name and sends the model, without its engine: the parent has its own half in its
place. So the parent needs nothing that loads models, and what loads them is written once.
"""

from __future__ import annotations

import asyncio
import io
import pickle
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from arriero.app import load
from arriero.config import Settings
from arriero.core import Engine
from arriero.engine.process.supervisor import ProcessEngine
from arriero.models.sources.download import Progress

if TYPE_CHECKING:
    from arriero.pool import ServedModel

COMMAND = (sys.executable, "-m", "arriero.app.child")
"""Starts a child."""
_ENGINE = "engine"


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
    return await asyncio.to_thread(_unpickled, engine.about, engine)


def _open(settings: Settings, tell: Callable[[Any], None]) -> tuple[Engine, bytes]:
    model = load(
        settings,
        on_download=lambda done, total: tell(("download", done, total)),
        on_convert=lambda done, total: tell(("convert", done, total)),
    )
    return model.engine, _pickled(model)


def _pickled(model: ServedModel) -> bytes:
    """The model and its variants, with a mark where their engine was."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> str | None:
            return _ENGINE if value is model.engine else None

    file = io.BytesIO()
    Pickler(file, protocol=5).dump(model)
    return file.getvalue()


def _unpickled(data: bytes, engine: Engine) -> ServedModel:
    """The model and its variants, with `engine` where the mark was."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, mark: Any) -> Engine:
            assert mark == _ENGINE
            return engine

    model: ServedModel = Unpickler(io.BytesIO(data)).load()
    return model


if __name__ == "__main__":
    from arriero.engine.process.child import run

    run(_open)
