"""Weights in pickles of PyTorch: where they are, and what a copy of them in safetensors goes by.

A pickle is a program, so it is read by torch's own restricted reader alone (`arriero.runners.torch.pickles`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_INSTEAD = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
SINGLE, INDEX, ADAPTER = "pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin"


def pickled_weights(path: Path) -> str | None:
    """Which file holds or lists the pickled weights of a directory; None where there are others, or none."""
    if any((path / name).is_file() for name in _INSTEAD):
        return None
    return next((name for name in (SINGLE, INDEX, ADAPTER) if (path / name).is_file()), None)


def pickles_identity(path: Path) -> str:
    """Hexadecimal digest that changes when a file of the directory could have changed."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    facts = [(file.relative_to(path).as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()
