"""What a check found, and the command that mends it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a diagnosis."""

    check: str
    status: Literal["ok", "warn", "fail"]
    """`fail`: serving would not work; `warn`: it would, but not as well, or not for long."""
    found: str
    mend: str | None = None
    """A command for a shell."""


def ok(check: str, found: str) -> Finding:
    """Nothing is wrong."""
    return Finding(check, "ok", found)


def warn(check: str, found: str, mend: str | None = None) -> Finding:
    """Something is worth a look."""
    return Finding(check, "warn", found, mend)


def fail(check: str, found: str, mend: str | None = None) -> Finding:
    """Something has to be mended."""
    return Finding(check, "fail", found, mend)


def command(*words: object) -> str:
    """Words as one types them into a shell."""
    return shlex.join(map(str, words))
