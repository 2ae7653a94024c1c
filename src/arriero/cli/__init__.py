"""The command line: `arriero serve`, `chat`, `bench`, `models`, `keys`, `usage`."""

from __future__ import annotations

import sys

from arriero import __version__
from arriero.errors import ArrieroError


def main() -> None:
    """Run the command line; an error of ours is one sentence on stderr and exit status 1."""
    if sys.argv[1:] == ["--version"]:  # Scripts ask this often: answer before anything big is imported.
        print(f"arriero {__version__}")
        return
    from arriero.cli.commands import app

    try:
        app()
    except ArrieroError as error:
        print(f"arriero: {error}", file=sys.stderr)
        sys.exit(1)
