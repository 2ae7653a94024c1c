"""Directories with pickled weights, which torch reads safely and nothing else here reads at all."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from arriero.models.cache import converted
from arriero.models.files.pickled import pickled_weights, pickles_identity


def torch_is_installed() -> bool:
    """Whether pickles can be read."""
    return importlib.util.find_spec("torch") is not None


def without_pickles(path: Path, cache: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """The directory or file itself, or where it has pickled weights a copy in `cache` with safetensors in their place.

    Without torch it is the directory itself, and whoever opens it will say what is missing. `progress(done, total)`
    counts files. Raises `ModelLoadError` for a damaged pickle, or one of more than tensors.
    """
    if not path.is_dir() or pickled_weights(path) is None or not torch_is_installed():
        return path

    def build(empty: Path) -> None:
        from arriero.runners.torch.pickles import to_safetensors

        to_safetensors(path, empty, progress)

    return converted(cache, {"checkpoint": pickles_identity(path), "engine": "safetensors"}, build)
