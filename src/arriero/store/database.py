"""The file: how it is opened, and how older ones become what this version expects.

Write-ahead logging lets the command line read and write while a server does. A commit is not waited for until it
reaches the disk: what was committed survives the process, and at worst the last commits are lost with the power.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from arriero.errors import StoreError

MIGRATIONS = (
    """
    CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        hash BLOB NOT NULL,
        created INTEGER NOT NULL,
        expires INTEGER,
        revoked INTEGER,
        models TEXT NOT NULL,
        endpoints TEXT NOT NULL,
        admin INTEGER NOT NULL,
        requests_per_minute INTEGER,
        tokens_per_minute INTEGER,
        concurrent INTEGER,
        budget INTEGER,
        budget_period TEXT NOT NULL,
        weight REAL NOT NULL
    ) STRICT;
    CREATE TABLE usage (
        day TEXT NOT NULL,
        key TEXT NOT NULL,
        model TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        requests INTEGER NOT NULL,
        errors INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        seconds REAL NOT NULL,
        PRIMARY KEY (day, key, model, endpoint)
    ) STRICT, WITHOUT ROWID;
    """,
)
"""Statements that lead from each version of the schema to the next; a version is only ever added."""


def open_database(path: Path, *, wait: float = 5.0) -> sqlite3.Connection:
    """A connection to the store at `path`, made and brought to this version's schema where need be.

    `wait` is how many seconds a statement waits for others' locks. Transactions are begun and ended by whoever wants
    several statements to be one. The file can be read by its owner alone.

    Raises:
        StoreError: it cannot be opened, is no store, or is a newer version's.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch(mode=0o600)
        connection = sqlite3.connect(path, timeout=wait, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"cannot open the store {path}: {_reason(error)}") from None
    try:
        _use_wal(connection, wait)
        connection.execute("PRAGMA synchronous = NORMAL")
        _migrate(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise StoreError(f"cannot use the store {path}: {_reason(error)}") from None
    except StoreError:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection, wait: float) -> None:
    """Write ahead, as all connections do. SQLite does not wait by itself while another one ends and tidies up."""
    deadline = time.monotonic() + wait
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    if _version(connection) == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection)  # another process may have been quicker
        if version > len(MIGRATIONS):
            raise StoreError(f"cannot use the store {path}: it was written by a newer version of Arriero")
        for statements in MIGRATIONS[version:]:
            for statement in statements.split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    with closing(connection.execute("PRAGMA user_version")) as rows:
        version: int = rows.fetchone()[0]
    return version


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
