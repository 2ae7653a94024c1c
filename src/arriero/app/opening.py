"""What runs in a model's own process: it opens what the settings name, and sends the model without its engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arriero.config import Settings
    from arriero.core import Engine


def _open(settings: Settings, tell: Callable[[Any], None]) -> tuple[Engine, bytes]:
    from arriero.app.loading import load
    from arriero.app.transfer import pickled

    model = load(
        settings,
        on_download=lambda done, total: tell(("download", done, total)),
        on_convert=lambda done, total: tell(("convert", done, total)),
    )
    return model.engine, pickled(model)


def _prepare() -> None:
    """Import what most models need, which takes a while; the settings arrive meanwhile."""
    with suppress(ImportError):  # who opens a model says so better
        import arriero.app.loading
        import arriero.runners.native  # noqa: F401


if __name__ == "__main__":
    from arriero.engine.process.child import run

    run(_open, _prepare)
