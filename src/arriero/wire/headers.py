"""Ids, and the header of our own that names what a request asked for in vain."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any
from urllib.parse import quote

from arriero.wire.sse import Receive, Send

Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

IGNORED = "x-arriero-ignored"
_MAX_IGNORED = 1000


def new_id(prefix: str) -> str:
    """An id that nothing else has: 128 random bits. Not from the system's source, which takes longer than the rest."""
    return f"{prefix}{random.getrandbits(128):032x}"


def ignored_headers(names: Sequence[str]) -> dict[str, str]:
    """The header that names what was asked for in vain; none where nothing was."""
    return {IGNORED: ignored_header(names)} if names else {}


def ignored_header(names: Iterable[str]) -> str:
    """The value of `x-arriero-ignored`: comma-separated, percent-encoded, at most 1,000 characters.

    What does not fit is left out whole, and `...` says so.
    """
    value = ""
    for name in names:
        longer = f"{value},{quote(name, safe='.')}" if value else quote(name, safe=".")
        if len(longer) > _MAX_IGNORED:
            return f"{value},..." if value else "..."
        value = longer
    return value
