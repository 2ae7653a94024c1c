"""What was used: one row for each day, key, model and endpoint."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

_DAY = 86_400


class Place(NamedTuple):
    """What usage is counted by; texts that are empty mean none."""

    day: str
    """UTC, such as 2026-05-31."""
    key: str
    model: str
    endpoint: str


@dataclass(slots=True)
class Amounts:
    """How much was used."""

    requests: int = 0
    errors: int = 0
    """Requests among them that were refused or failed, also amid their answer."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompts' tokens those that needed no computation."""
    completion_tokens: int = 0
    seconds: float = 0.0
    """From the first byte asked to the last one answered."""

    def add(self, other: Amounts) -> None:
        """Count more."""
        self.requests += other.requests
        self.errors += other.errors
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.completion_tokens += other.completion_tokens
        self.seconds += other.seconds

    def since(self, before: Amounts) -> Amounts:
        """What came after an earlier state of the same."""
        return Amounts(
            self.requests - before.requests,
            self.errors - before.errors,
            self.prompt_tokens - before.prompt_tokens,
            self.cached_tokens - before.cached_tokens,
            self.completion_tokens - before.completion_tokens,
            self.seconds - before.seconds,
        )

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.prompt_tokens + self.completion_tokens


NAMES = tuple(field.name for field in fields(Amounts))
_COLUMNS = ", ".join((*Place._fields, *NAMES))
_MARKS = ", ".join("?" for _ in (*Place._fields, *NAMES))
_ADD = (
    f"INSERT INTO usage ({_COLUMNS}) VALUES ({_MARKS}) "
    f"ON CONFLICT ({', '.join(Place._fields)}) DO UPDATE SET {', '.join(f'{n} = {n} + excluded.{n}' for n in NAMES)}"
)


def add(connection: sqlite3.Connection, rows: Iterable[tuple[Place, Amounts]]) -> None:
    """Add to what is stored, all of it or, where an error is raised, nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany(_ADD, [(*place, *astuple(amounts)) for place, amounts in rows])
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def query(
    connection: sqlite3.Connection,
    *,
    key: str | None = None,
    model: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> list[tuple[Place, Amounts]]:
    """What was used, by day; `since` and `until` are days, both included. None: whatever it is."""
    conditions = {"key = ?": key, "model = ?": model, "day >= ?": since, "day <= ?": until}
    given = {text: value for text, value in conditions.items() if value is not None}
    where = f" WHERE {' AND '.join(given)}" if given else ""
    order = ", ".join(Place._fields)
    rows = connection.execute(f"SELECT {_COLUMNS} FROM usage{where} ORDER BY {order}", [*given.values()])
    split = len(Place._fields)
    return [(Place(*row[:split]), Amounts(*row[split:])) for row in rows.fetchall()]


def day_of(seconds: float) -> str:
    """The day of a time in seconds since the epoch."""
    return _day(int(seconds // _DAY))


@lru_cache(maxsize=2)
def _day(number: int) -> str:
    """Asked for every request, and hardly ever another one than the time before."""
    return datetime.fromtimestamp(number * _DAY, UTC).strftime("%Y-%m-%d")
