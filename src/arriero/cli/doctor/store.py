"""The file of keys and usage."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from arriero.cli.doctor.caches import existing, why_not_writable
from arriero.cli.doctor.finding import Finding, command, fail, ok, warn
from arriero.cli.output import readable_size
from arriero.config import Settings
from arriero.config_description import variable

_WAIT = 1.0
"""Seconds for others to let go of it."""
_LITTLE = 50 * 10**6


def check_store(settings: Settings) -> Iterator[Finding]:
    """It can be opened and written, is whole and of a version that is known, and there is room."""
    path = settings.store
    problem = why_not_writable(path.parent)
    if problem:
        yield fail("store", f"{path} cannot be kept: {problem}", f"export {variable('store')}=/path/to/arriero.db")
        return
    free = shutil.disk_usage(existing(path.parent)).free
    if free < _LITTLE:
        yield fail(
            "store", f"the disk of {path} is full: {readable_size(free)} are left", command("df", "-h", path.parent)
        )
        return
    if path.exists():
        yield _look(path)
        if os.name == "posix" and path.stat().st_mode & 0o077:
            yield warn("store", f"others may read {path}", command("chmod", "600", path))
    else:
        yield ok("store", f"{path} is made once there is a key or usage")


def num_keys(path: Path) -> int:
    """How many keys the store holds; 0 where it cannot be read."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_WAIT)) as connection:
            return int(connection.execute("SELECT count(*) FROM keys").fetchone()[0])
    except sqlite3.Error:
        return 0


def _look(path: Path) -> Finding:
    """The file as a server would find it; it is not changed."""
    from arriero.store.database import MIGRATIONS

    aside = command("mv", path, f"{path}.damaged")
    try:
        address = f"{path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(address, uri=True, timeout=_WAIT, isolation_level=None)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            complaint = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        return _wrong(path, error, aside)
    if complaint != "ok":
        return fail("store", f"{path} is damaged: {' '.join(complaint.split())}", aside)
    if version > len(MIGRATIONS):
        newer = command(sys.executable, "-m", "pip", "install", "--upgrade", "arriero")
        return fail("store", f"{path} was written by a newer version of Arriero", newer)
    return ok("store", f"{path} is whole, {num_keys(path)} keys")


def _wrong(path: Path, error: sqlite3.Error, aside: str) -> Finding:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return fail("store", f"another program keeps {path} locked", command("fuser", "-v", path))
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return fail(
            "store",
            f"{path} cannot be written: {error}",
            command("sudo", "chown", os.environ.get("USER", "$USER"), path),
        )
    if code == sqlite3.SQLITE_FULL:
        return fail("store", f"the disk of {path} is full", command("df", "-h", path.parent))
    if code == sqlite3.SQLITE_NOTADB:  # it may be somebody else's, and is not to be moved
        return fail(
            "store", f"{path} is no store of Arriero's: {error}", f"export {variable('store')}=/path/to/arriero.db"
        )
    return fail("store", f"{path} cannot be used: {error}", aside)
