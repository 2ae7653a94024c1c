"""What runs in a model's own process: it opens what the settings name, and sends the model without its engine."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arriero.config import Settings
    from arriero.core import Engine
    from arriero.models.tokenizers.tokenizer import Tokenizer


def _open(settings: Settings, tell: Callable[[Any], None]) -> tuple[Engine, bytes]:
    from arriero.app.loading import opened
    from arriero.app.transfer import pickled

    ahead: list[Tokenizer] = []

    def send_ahead(tokenizer: Tokenizer) -> None:
        tell(("tokenizer", len(ahead), pickle.dumps(tokenizer, protocol=5)))
        ahead.append(tokenizer)

    model = opened(
        settings,
        on_download=lambda done, total: tell(("download", done, total)),
        on_convert=lambda done, total: tell(("convert", done, total)),
        on_tokenizer=send_ahead,
    )
    return model.engine, pickled(model, ahead)


def _prepare() -> None:
    """Import what most models need, which takes a while; the settings arrive meanwhile."""
    with suppress(ImportError):  # who opens a model says so better
        import arriero.app.loading
        import arriero.runners.native  # noqa: F401


if __name__ == "__main__":
    from arriero.engine.process.child import run

    run(_open, _prepare)
