"""Keys are stored so that nobody can read them, and found by their public part."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from arriero.errors import StoreError
from arriero.store import keys
from arriero.store.database import open_database


@pytest.fixture
def store(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(open_database(tmp_path / "arriero.db")) as connection:
        yield connection


def test_a_key_comes_back_as_it_was_stored(store: sqlite3.Connection) -> None:
    key, text = keys.new_key(
        "alice",
        expires=2_000_000_000,
        models=("smol*", "other"),
        endpoints=("chat/*",),
        admin=True,
        requests_per_minute=10,
        tokens_per_minute=1000,
        concurrent=2,
        budget=10**12,
        budget_period="day",
        weight=2.5,
    )
    keys.insert(store, key)
    assert keys.every(store) == [key]
    assert keys.find(store, "alice") == keys.find(store, key.id) == key
    assert key.hash == keys.hash_of(text.encode())
    assert keys.id_of(text.encode()) == key.id


def test_keys_of_one_second_come_in_the_order_they_were_made_in(store: sqlite3.Connection) -> None:
    names = [f"key {number}" for number in range(20)]
    for name in names:
        keys.insert(store, replace(keys.new_key(name)[0], created=1))
    assert [key.name for key in keys.every(store)] == names


def test_no_key_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "arriero.db"
    connection = open_database(path)
    key, text = keys.new_key("alice")
    keys.insert(connection, key)
    second = keys.rotate(connection, key)
    written = b"".join(each.read_bytes() for each in tmp_path.iterdir())
    connection.close()
    assert key.id.encode() in written
    for each in (text, second):
        assert each.removeprefix(f"{keys.PREFIX}{key.id}-").encode() not in written


def test_rotated_and_revoked_keys(store: sqlite3.Connection) -> None:
    key, old = keys.new_key("alice", budget=7)
    keys.insert(store, key)
    new = keys.rotate(store, key)
    rotated = keys.find(store, "alice")
    assert rotated.hash == keys.hash_of(new.encode()) != keys.hash_of(old.encode())
    assert (rotated.id, rotated.budget) == (key.id, 7)
    revoked = keys.revoke(store, rotated)
    assert keys.find(store, key.id) == revoked
    assert keys.revoke(store, revoked) == revoked
    with pytest.raises(StoreError, match="revoked"):
        keys.rotate(store, revoked)


def test_a_name_that_several_have_needs_an_id(store: sqlite3.Connection) -> None:
    for _ in range(2):
        keys.insert(store, keys.new_key("alice")[0])
    with pytest.raises(StoreError, match="several"):
        keys.find(store, "alice")
    with pytest.raises(StoreError, match="no key 'bob'"):
        keys.find(store, "bob")


@pytest.mark.parametrize("text", [b"", b"sk-arriero-", b"sk-other-0123456789ab-x", b"\xff\xfe", b"sk-arriero-\xff\n"])
def test_what_is_no_key_has_no_id(text: bytes) -> None:
    assert len(keys.id_of(text)) < 12
