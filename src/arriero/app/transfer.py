"""A model on its way from the process that computes it to the one that serves it: all of it but the engine.

Its tokenizers may have gone ahead, for to build them takes as long as to open the weights.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arriero.core import Engine
    from arriero.models.tokenizers.tokenizer import Tokenizer
    from arriero.pool import ServedModel

_ENGINE = -1


def pickled(model: ServedModel, ahead: Sequence[Tokenizer] = ()) -> bytes:
    """The model and its variants, with marks where their engine was, and the tokenizers that went `ahead`."""
    marks = {id(each): number for number, each in enumerate(ahead)} | {id(model.engine): _ENGINE}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> int | None:
            return marks.get(id(value))

    file = io.BytesIO()
    Pickler(file, protocol=5).dump(model)
    return file.getvalue()


def unpickled(data: bytes, engine: Engine, ahead: Sequence[Tokenizer] = ()) -> ServedModel:
    """The model and its variants, with `engine` and the tokenizers that came `ahead` where the marks were."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, mark: int) -> Engine | Tokenizer:
            return engine if mark == _ENGINE else ahead[mark]

    model: ServedModel = Unpickler(io.BytesIO(data)).load()
    return model
