"""The command line: `arriero serve`, `chat`, `doctor`, `bench`, `models`, `keys`, `usage`, `completion`."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable

from arriero import __version__
from arriero.errors import ArrieroError

_WITHOUT_MODEL = {"-h", "--help", "scripted", "--engine=scripted"}
"""Words that mean that `arriero serve` computes no model."""


def main() -> None:
    """Run the command line; an error of ours is one sentence on stderr and exit status 1."""
    if sys.argv[1:] == ["--version"]:  # Scripts ask this often: answer before anything big is imported.
        print(f"arriero {__version__}")
        return
    # NumPy's threads otherwise spin for a while when they are made, and the other core has better things to do.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    # pydantic otherwise looks for plugins of its own in every package that is installed.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if sys.argv[1:2] != ["serve"]:
        _run()
        return
    from arriero.app import COMMAND
    from arriero.engine.process.spawned import discard_early, spawn_early

    if not _WITHOUT_MODEL & {*sys.argv, os.environ.get("ARRIERO_ENGINE")}:
        spawn_early(COMMAND)  # It imports what it needs while this process does.
    gc.disable()  # until all is imported, of which nothing is garbage
    try:
        _run()
    finally:
        discard_early()


def _run() -> None:
    try:
        command = _command()
    except ModuleNotFoundError as error:
        from arriero.cli.doctor.installation import pip

        sys.exit(f"arriero: the installation is not whole: {error}; mend it with {pip(error.name or 'arriero')}")
    try:
        command()
    except ArrieroError as error:
        print(f"arriero: {error}", file=sys.stderr)
        sys.exit(1)


def _command() -> Callable[[], None]:
    """What the words ask for; who starts a server waits for it, so that is looked at first."""
    if sys.argv[1:2] == ["serve"]:
        from arriero.cli.plain import plain_flags

        flags = plain_flags(sys.argv[2:])
        if flags is not None:
            from arriero.cli.serve import serve

            return lambda: serve(**flags)
    from arriero.cli.commands import app

    return lambda: app(prog_name="arriero")
