"""How commands print what they found: for people or for programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import Any

_WIDE = 1000
"""Columns where there is no terminal."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """Text from elsewhere without the characters that would steer a terminal."""
    return _CONTROL.sub("", text)


def print_json(value: Any) -> None:
    """Print it for programs."""
    print(json.dumps(value, indent=2))


def print_table(heads: tuple[str, ...] | None, rows: Iterable[tuple[str, ...]], *, first_number: int = 99) -> None:
    """Print it for people; columns from `first_number` on are numbers. Without `heads`, two columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD if heads else None, show_header=heads is not None, padding=(0, 1))
    for place, head in enumerate(heads or ("", "")):
        table.add_column(head, overflow="fold", justify="right" if place >= first_number else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    # Nobody says how wide a file or a pipe is; folded to 80 columns neither people nor grep could read it.
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)


def readable_size(num_bytes: int) -> str:
    """Bytes in words for people."""
    for unit, least in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= least:
            return f"{num_bytes / least:.1f} {unit}"
    return f"{num_bytes} B" if num_bytes else "-"
