"""Writing into the cache so that nothing is ever half there, whoever else writes at the same time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from arriero.errors import ModelLoadError

PARTIAL = ".partial-"
"""Stands in the name of every directory that is not finished, after the name of its lock."""


@contextmanager
def workspace(parent: Path, name: str) -> Iterator[Path]:
    """Hold the lock `name` in `parent`; gives a new directory there, removed afterwards with what is left in it.

    Waits for another holder, and sweeps what a killed one left behind. Finished work is moved out of the
    directory with `os.replace`, which is atomic since both lie in `parent`.

    Raises:
        ModelLoadError: for any `OSError` inside, such as a full disk, with what to do about it.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(parent / f"{name}.lock"):
            for leftover in parent.glob(f"{name}{PARTIAL}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            directory = Path(tempfile.mkdtemp(prefix=f"{name}{PARTIAL}", dir=parent))
            try:
                yield directory
            finally:
                shutil.rmtree(directory, ignore_errors=True)
    except OSError as error:
        raise ModelLoadError(
            f"{error.filename or parent}: cannot be written: {error.strerror or error}. "
            "Make room or give access there, or choose another cache directory with ARRIERO_CACHE."
        ) from error


def make_durable(path: Path) -> None:
    """Return only when a file, or every file in a directory, would survive a loss of power."""
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file():
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
