"""The composition root: settings in, served models and (`app.web`) an ASGI application out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arriero.config import Settings
    from arriero.models.sources.download import Progress
    from arriero.pool import ServedModel

COMMAND = (sys.executable, "-m", "arriero.app.opening")
"""Starts a process for a model."""


def load(
    settings: Settings, *, on_download: Progress | None = None, on_convert: Callable[[int, int], None] | None = None
) -> ServedModel:
    """The model that `settings` name, with an engine of this process; see `arriero.app.loading.load`.

    What loads models takes long to import, and a server whose models live in processes of their own never needs it.
    """
    from arriero.app import loading

    return loading.load(settings, on_download=on_download, on_convert=on_convert)
