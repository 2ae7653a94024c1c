"""Usage reaches the file whatever happens to it meanwhile, and keys are noticed."""

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from arriero.core import Meter
from arriero.errors import StoreError
from arriero.store import keys, ledger, usage
from arriero.store.database import open_database
from arriero.store.ledger import Ledger, totals
from clock import Clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "arriero.db"


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "INTERVAL", 0.01)
    monkeypatch.setattr(ledger, "_WAIT", 0.01)


@pytest.fixture
def started(path: Path, clock: Clock, fast: None) -> Iterator[Ledger]:
    books = Ledger(path, clock=clock)
    books.start()
    yield books
    books.close()


def until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def stored(path: Path) -> list[tuple[usage.Place, usage.Amounts]]:
    if not path.exists():
        return []
    with closing(open_database(path)) as connection:
        return usage.query(connection)


def meter(prompt: int = 5, completion: int = 0, model: str = "m") -> Meter:
    return Meter(endpoint="/v1/completions", model=model, prompt_tokens=prompt, completion_tokens=completion)


def test_usage_is_stored_while_a_request_runs_and_exactly_once(started: Ledger, path: Path, clock: Clock) -> None:
    running = meter()
    account = started.begin("alice", running)
    for count in (1, 2, 3):
        running.completion_tokens = count
        clock.now += 1
        until(lambda: stored(path) and stored(path)[0][1].completion_tokens == count)  # noqa: B023
    running.completion_tokens = 4
    started.end(account, failed=True)
    until(lambda: stored(path)[0][1].errors)
    assert stored(path) == [
        (usage.Place("2026-05-28", "alice", "m", "/v1/completions"), usage.Amounts(1, 1, 5, 0, 4, 3.0))
    ]


def test_what_was_refused_after_it_was_stored_is_taken_back(started: Ledger, path: Path) -> None:
    waiting = meter(prompt=100)
    account = started.begin("alice", waiting)
    until(lambda: stored(path))
    waiting.prompt_tokens = 0
    started.end(account, failed=True)
    until(lambda: stored(path)[0][1].errors)
    assert stored(path)[0][1].tokens == 0
    assert started.spent("alice", "month") == 0


def test_days_and_budgets(started: Ledger, path: Path, clock: Clock) -> None:
    for day in range(5):
        started.end(started.begin("alice", meter(10, 1)))
        assert started.spent("alice", "day") == 11
        clock.now += 86_400
        if day == 3:  # the next day is in June
            assert usage.day_of(clock.now) == "2026-06-01"
            assert started.spent("alice", "month") == 0
    assert started.spent("alice", "month") == 11
    assert [place.day[-2:] for place, _ in started.report()] == ["28", "29", "30", "31", "01"]
    assert [place.day[-2:] for place, _ in started.report(since="2026-05-29", until="2026-05-30")] == ["29", "30"]
    started.close()
    again = Ledger(path, clock=clock)
    clock.now -= 86_400
    again.start()
    assert again.spent("alice", "month") == 11
    again.close()


def test_requests_that_use_no_model_are_forgotten(started: Ledger) -> None:
    started.end(started.begin("alice", meter(model="")), counts=False)
    assert started.report() == []


def test_filters(started: Ledger) -> None:
    for key, model in (("alice", "m"), ("alice", "n"), ("bob", "m")):
        started.end(started.begin(key, meter(model=model)))
    assert totals(started.report(key="alice")).requests == 2
    assert totals(started.report(model="m")).requests == 2
    assert totals(started.report(key="bob", model="n")).requests == 0


def test_a_locked_store_loses_nothing_and_stops_nobody(
    started: Ledger, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started.end(started.begin("alice", meter()))
    until(lambda: stored(path))
    caplog.set_level(logging.INFO)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for _ in range(20):
            started.end(started.begin("alice", meter()))
        until(lambda: started.problem)
        assert started.spent("alice", "month") == 105
        other.execute("ROLLBACK")
    until(lambda: stored(path)[0][1].requests == 21)
    until(lambda: not started.problem)
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]


def test_a_full_disk_is_survived(started: Ledger, path: Path) -> None:
    started.end(started.begin("alice", meter()))
    until(lambda: stored(path))
    with started._writing:
        assert started._connection
        pages = started._connection.execute("PRAGMA page_count").fetchone()[0]
        started._connection.execute(f"PRAGMA max_page_count = {pages}")  # what SQLite says then is "disk is full"
    for number in range(200):
        started.end(started.begin("alice", meter(model=f"{number:0100}")))
    until(lambda: "full" in (started.problem or ""))
    with started._writing:
        started._connection.execute("PRAGMA max_page_count = 100000")
    until(lambda: not started.problem)
    assert totals(stored(path)).requests == 201


def test_what_is_kept_in_memory_is_bounded(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger, "MOST_PENDING", 3)
    books = Ledger(None)
    for number in range(5):
        books.end(books.begin("alice", meter(model=str(number))))
    books.end(books.begin("alice", meter(model="0")))
    assert totals(books.report()).requests == 4
    assert caplog.text.count("Usage is lost") == 1


def test_a_store_that_is_made_replaced_or_removed_is_noticed(started: Ledger, path: Path, tmp_path: Path) -> None:
    assert not path.exists()
    first, second = keys.new_key("first")[0], keys.new_key("second")[0]
    with closing(open_database(path)) as connection:
        keys.insert(connection, first)
    until(lambda: started.keys == (first,))
    with closing(open_database(path)) as connection:
        revoked = keys.revoke(connection, first)
    until(lambda: started.keys == (revoked,))
    with closing(open_database(tmp_path / "other.db")) as connection:
        keys.insert(connection, second)
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    (tmp_path / "other.db").rename(path)
    until(lambda: started.keys == (second,))
    path.unlink()
    started.end(started.begin("alice", meter()))
    until(lambda: stored(path))


def test_a_store_that_cannot_be_read_is_told_at_the_start(path: Path) -> None:
    path.write_text("no database at all " * 100)
    with pytest.raises(StoreError):
        Ledger(path).start()


KILLED = """
import sys, time
from pathlib import Path
from arriero.core import Meter
from arriero.store.ledger import Ledger
books = Ledger(Path(sys.argv[1]))
books.start()
done = 0
running = Meter(model="m", endpoint="e")
books.begin("alice", running)
while True:
    books.end(books.begin("alice", Meter(model="m", endpoint="e", completion_tokens=1)))
    running.prompt_tokens += 1
    done += 1
    print(done, flush=True)
    time.sleep(0.01)
"""


def test_a_killed_process_loses_what_was_not_looked_at_yet_and_no_more(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    reached: list[int] = []
    for line in process.stdout:
        reached.append(int(line))
        found = stored(path)
        if found and found[0][1].completion_tokens >= 20:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    amounts = stored(path)[0][1]
    assert 20 <= amounts.completion_tokens <= reached[-1] + 100
    assert abs(amounts.prompt_tokens - amounts.completion_tokens) <= 1
    assert amounts.requests in (amounts.completion_tokens, amounts.completion_tokens + 1)


def test_a_path_that_leads_nowhere_is_tried_again(path: Path, fast: None) -> None:
    path.write_text("A file where a directory has to be.")
    books = Ledger(path / "arriero.db")
    books.start()
    books.end(books.begin("k", meter()))
    until(lambda: books.problem)
    path.unlink()
    path.mkdir()
    until(lambda: stored(path / "arriero.db"))
    until(lambda: not books.problem)
    books.close()
