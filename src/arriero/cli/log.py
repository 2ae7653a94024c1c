"""Log lines for people: one line each, on stderr."""

from __future__ import annotations

import logging


def set_up(level: str) -> None:
    """Show lines of at least this level; those of libraries only when something is wrong, or at `debug`."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S", force=True
    )
    for name in ("uvicorn", "asyncio", "httpx2"):
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
