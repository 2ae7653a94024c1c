"""The file is made, brought up to date, and refused where it is not ours to use."""

import sqlite3
import stat
from pathlib import Path

import pytest

from arriero.errors import StoreError
from arriero.store.database import MIGRATIONS, open_database


def test_a_new_store_can_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "arriero.db"
    with open_database(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    for each in path.parent.iterdir():
        assert stat.S_IMODE(each.stat().st_mode) == 0o600
    open_database(path).close()


def test_an_older_store_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "arriero.db"
    connection = open_database(path)
    connection.execute("INSERT INTO usage VALUES ('2026-01-01', '', 'm', 'e', 1, 0, 2, 0, 3, 0.5)")
    connection.close()
    newer = (*MIGRATIONS, "ALTER TABLE usage ADD COLUMN images INTEGER NOT NULL DEFAULT 0; CREATE TABLE more (id TEXT)")
    monkeypatch.setattr("arriero.store.database.MIGRATIONS", newer)
    connection = open_database(path)
    assert connection.execute("SELECT completion_tokens, images FROM usage").fetchall() == [(3, 0)]
    connection.close()
    monkeypatch.setattr("arriero.store.database.MIGRATIONS", MIGRATIONS)
    with pytest.raises(StoreError, match="newer version"):
        open_database(path)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "arriero.db"
    open_database(path).close()
    monkeypatch.setattr(
        "arriero.store.database.MIGRATIONS", (*MIGRATIONS, "CREATE TABLE more (id TEXT); CREATE NONSENSE")
    )
    with pytest.raises(StoreError):
        open_database(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'more'").fetchall()
    connection.close()


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("This is not a database, but a text that is longer than a header. " * 20)
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "text", tmp_path, tmp_path / "file" / "arriero.db"):
        with pytest.raises(StoreError, match="cannot"):
            open_database(path)
