"""The command line: `arriero serve`, `chat`, `doctor`, `bench`, `models`, `keys`, `usage`, `completion`."""

from __future__ import annotations

import sys

from arriero import __version__
from arriero.errors import ArrieroError


def main() -> None:
    """Run the command line; an error of ours is one sentence on stderr and exit status 1."""
    if sys.argv[1:] == ["--version"]:  # Scripts ask this often: answer before anything big is imported.
        print(f"arriero {__version__}")
        return
    try:
        from arriero.cli.commands import app
    except ModuleNotFoundError as error:
        from arriero.cli.doctor.installation import pip

        sys.exit(f"arriero: the installation is not whole: {error}; mend it with {pip(error.name or 'arriero')}")
    try:
        app(prog_name="arriero")
    except ArrieroError as error:
        print(f"arriero: {error}", file=sys.stderr)
        sys.exit(1)
