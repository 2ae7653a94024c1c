"""Which engine computes a model, and why: asked when nobody says so, and by `arriero models show`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from arriero.errors import UnsupportedModel
from arriero.models.checkpoint import open_checkpoint


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, None where no engine can, and the reason as a sentence."""

    engine: str | None
    reason: str


def choose_engine(path: Path) -> Choice:
    """The engine for the GGUF file or directory at `path`; raises `ModelLoadError` where it is missing or damaged."""
    try:
        checkpoint = open_checkpoint(path)
    except UnsupportedModel as error:
        return Choice(None, str(error))
    return Choice("onnx", f"The {checkpoint.config.family} family is one of those that have an ONNX graph.")
