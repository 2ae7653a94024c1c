"""Keys: who may use what, how much and until when.

A key is `sk-arriero-ID-SECRET`: the id is public and names it in tables, logs and usage; the secret is 256 random bits.
Only the SHA-256 of the whole is stored. A slow hash guards passwords because they can be guessed; nobody guesses 256
random bits, so here it would only make every request slow.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any, Literal

from arriero.errors import StoreError

PREFIX = "sk-arriero-"
_SECRET_BYTES = 32
_ID_BYTES = 6
LONGEST_NAME = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as it is stored. Times are seconds since the epoch; a limit that is None is none."""

    id: str
    name: str
    hash: bytes
    """SHA-256 of the whole key."""
    created: int
    expires: int | None = None
    revoked: int | None = None
    models: tuple[str, ...] = ("*",)
    """Names, or patterns with `*` and `?`."""
    endpoints: tuple[str, ...] = ("*",)
    """Paths without `/v1/`, such as `chat/completions`, or patterns."""
    admin: bool = False
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    """Requests at the same time."""
    budget: int | None = None
    """Tokens, read and written, in each day or month (UTC)."""
    budget_period: Literal["day", "month"] = "month"
    weight: float = 1.0
    """Share of a busy engine, in relation to other keys."""


_COLUMNS = ", ".join(field.name for field in fields(Key))
_MARKS = ", ".join("?" for _ in fields(Key))


def new_key(name: str, **scope: object) -> tuple[Key, str]:
    """A key that is not stored yet, and its text, which nobody can tell from what is stored. `scope` as in `Key`."""
    id = secrets.token_hex(_ID_BYTES)
    text = _new_text(id)
    key = Key(id=id, name=name, hash=hash_of(text.encode()), created=int(time.time()), **scope)  # type: ignore[arg-type]
    return key, text


def hash_of(text: bytes) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(text).digest()


def id_of(text: bytes) -> str:
    """The public part of what may be a key; some text that no key has as its id where it is none."""
    rest = text.removeprefix(PREFIX.encode())
    return "" if rest == text else rest[: 2 * _ID_BYTES].decode("latin-1")


def insert(connection: sqlite3.Connection, key: Key) -> None:
    """Store a key."""
    values = [json.dumps(each) if isinstance(each, tuple) else each for each in astuple(key)]
    _write(connection, f"INSERT INTO keys ({_COLUMNS}) VALUES ({_MARKS})", values)


def every(connection: sqlite3.Connection) -> list[Key]:
    """All keys in the order they were made in, revoked ones too."""
    # Not by `created`: keys made within a second would come in the order of their random ids.
    rows = connection.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY rowid").fetchall()
    return [_key(row) for row in rows]


def find(connection: sqlite3.Connection, word: str) -> Key:
    """The key with this id or name; raises `StoreError` where none or several have it."""
    found = [key for key in every(connection) if word in (key.id, key.name)]
    if not found:
        raise StoreError(f"there is no key '{word}'; arriero keys list shows all")
    if len(found) > 1:
        raise StoreError(f"several keys have the name '{word}'; give an id: {', '.join(key.id for key in found)}")
    return found[0]


def revoke(connection: sqlite3.Connection, key: Key) -> Key:
    """Have a key open nothing any more; its usage stays."""
    revoked = replace(key, revoked=key.revoked or int(time.time()))
    _write(connection, "UPDATE keys SET revoked = ? WHERE id = ?", (revoked.revoked, key.id))
    return revoked


def rotate(connection: sqlite3.Connection, key: Key) -> str:
    """Give a key another secret and return its text; the old one opens nothing any more. Limits and usage stay."""
    if key.revoked:
        raise StoreError(f"the key '{key.id}' is revoked; create another")
    text = _new_text(key.id)
    _write(connection, "UPDATE keys SET hash = ? WHERE id = ?", (hash_of(text.encode()), key.id))
    return text


def _new_text(id: str) -> str:
    return f"{PREFIX}{id}-{secrets.token_urlsafe(_SECRET_BYTES)}"


def _key(row: Sequence[object]) -> Key:
    values = dict(zip((field.name for field in fields(Key)), row, strict=True))
    for name in ("models", "endpoints"):
        values[name] = tuple(json.loads(str(values[name])))
    return Key(**{**values, "admin": bool(values["admin"])})  # type: ignore[arg-type]


def _write(connection: sqlite3.Connection, statement: str, values: Sequence[Any]) -> None:
    try:
        connection.execute(statement, values)
    except sqlite3.Error as error:
        raise StoreError(f"cannot write to the store: {error}") from None
