"""A model on its way from the process that computes it to the one that serves it: all of it but the engine."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arriero.core import Engine
    from arriero.pool import ServedModel

_ENGINE = "engine"


def pickled(model: ServedModel) -> bytes:
    """The model and its variants, with a mark where their engine was."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> str | None:
            return _ENGINE if value is model.engine else None

    file = io.BytesIO()
    Pickler(file, protocol=5).dump(model)
    return file.getvalue()


def unpickled(data: bytes, engine: Engine) -> ServedModel:
    """The model and its variants, with `engine` where the mark was."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, mark: Any) -> Engine:
            assert mark == _ENGINE
            return engine

    model: ServedModel = Unpickler(io.BytesIO(data)).load()
    return model
