"""The server's side of the store: usage is written by one thread, a few times a second, and keys are read again.

Nothing here is waited for by an answer. While the store is locked, full or broken, usage is added up in memory and
tried again; `problem` says so. What runs is looked at as well, so a process that is killed loses the usage of the
moment since the last look and no more.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from arriero.core import Meter
from arriero.errors import StoreError
from arriero.store import keys, usage
from arriero.store.database import open_database
from arriero.store.usage import Amounts, Place

logger = logging.getLogger(__name__)

INTERVAL = 0.5
"""Seconds between two looks."""
MOST_PENDING = 10_000
"""Rows that are kept in memory while the store cannot be written."""
_WAIT = 0.5


class Account:
    """One request on its way, and how much of what it used has been counted."""

    __slots__ = ("began", "counted", "key", "meter")

    def __init__(self, key: str, meter: Meter, began: float) -> None:
        self.key = key
        self.meter = meter
        self.began = began
        self.counted = Amounts()

    def take(self, now: float) -> tuple[Place, Amounts]:
        """What was used since the last time, and where it belongs."""
        meter = self.meter
        whole = Amounts(1, 0, meter.prompt_tokens, meter.cached_tokens, meter.completion_tokens, now - self.began)
        more, self.counted = whole.since(self.counted), whole
        return Place(usage.day_of(now), self.key, meter.model, meter.endpoint), more


class Ledger:
    """Keys and usage of a running server."""

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        """`path` None keeps usage in memory, for as long as the process lives, and knows no keys."""
        self.keys: tuple[keys.Key, ...] = ()
        """As they were at the last look; another tuple when anything has changed."""
        self.problem: str | None = None
        """What is wrong with the store at the moment."""
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()  # guards these four; held for moments, the event loop takes it
        self._running: set[Account] = set()
        self._pending: dict[Place, Amounts] = {}
        self._spent: dict[tuple[str, str], int] = defaultdict(int)
        self._lost = 0

        self._writing = threading.RLock()  # guards the rest; held while the file is read and written
        self._connection: sqlite3.Connection | None = None
        self._file = -1
        self._version = -1
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()

    # On the event loop

    def begin(self, key: str, meter: Meter) -> Account:
        """A request begins."""
        account = Account(key, meter, self._clock())
        with self._lock:
            self._running.add(account)
        return account

    def end(self, account: Account, *, failed: bool = False, counts: bool = True) -> None:
        """It is over; without `counts` it was no use of a model and is forgotten."""
        with self._lock:
            self._running.discard(account)
            if counts or account.counted.requests:
                place, amounts = account.take(self._clock())
                amounts.errors = int(failed)
                self._count(place, amounts)

    def spent(self, key: str, period: str) -> int:
        """Tokens that were used with a key in this `day` or `month`."""
        day = usage.day_of(self._clock())
        return self._spent.get((key, day if period == "day" else day[:7]), 0)

    # In any thread

    def start(self) -> None:
        """Read the keys, then look after everything in a thread; raises `StoreError` when there is a store that cannot
        be read, because nobody knows then who may come in."""
        if self._path is None:
            return
        with self._writing:
            try:
                if self._path.exists():
                    self._connect()
                    self._read()
            except (sqlite3.Error, OSError) as error:
                raise StoreError(f"cannot read the store {self._path}: {error}") from None
        self._thread = threading.Thread(target=self._run, name="arriero-store", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._ending.set()
        if self._thread:
            self._thread.join()
        with self._writing:
            if self._connection:
                self._connection.close()
                self._connection = None

    def report(
        self, *, key: str | None = None, model: str | None = None, since: str | None = None, until: str | None = None
    ) -> list[tuple[Place, Amounts]]:
        """What was used, up to this moment; arguments as `usage.query`. Reads the file, so not for the event loop.

        Raises:
            StoreError: the file cannot be read.
        """
        with self._writing:
            self._look()
            rows: dict[Place, Amounts] = {}
            try:
                if self._connection:
                    rows = dict(usage.query(self._connection, key=key, model=model, since=since, until=until))
            except sqlite3.Error as error:
                raise StoreError(f"cannot read the store {self._path}: {error}") from None
            with self._lock:
                for place, amounts in self._pending.items():
                    wanted = (
                        key in (None, place.key)
                        and model in (None, place.model)
                        and (since or "") <= place.day <= (until or "9999-12-31")
                    )
                    if wanted:
                        rows.setdefault(place, Amounts()).add(amounts)
        return sorted(rows.items())

    # In the thread

    def _run(self) -> None:
        while not self._ending.wait(INTERVAL):
            self._look()
        self._look()

    def _look(self) -> None:
        """Write what was used and read what has changed; what goes wrong is told and tried again the next time."""
        with self._writing:
            rows = self._take()
            try:
                if self._connect(create=bool(rows)):
                    if rows:
                        assert self._connection
                        usage.add(self._connection, rows.items())
                        rows = {}
                    self._read_changes()
            except (sqlite3.Error, StoreError, OSError) as error:
                self._tell(str(error))
            else:
                self._tell(None)
            finally:
                self._put_back(rows)

    def _take(self) -> dict[Place, Amounts]:
        with self._lock:
            now = self._clock()
            for account in self._running:
                if account.meter.model:
                    self._count(*account.take(now))
            if self._path is None:
                return {}
            rows, self._pending = self._pending, {}
        return rows

    def _put_back(self, rows: dict[Place, Amounts]) -> None:
        if rows:
            with self._lock:
                for place, amounts in self._pending.items():
                    rows.setdefault(place, Amounts()).add(amounts)
                self._pending = rows

    def _count(self, place: Place, amounts: Amounts) -> None:
        """Add to what is pending; the lock is held."""
        for period in (place.day, place.day[:7]):
            self._spent[place.key, period] += amounts.tokens
        if place in self._pending:
            self._pending[place].add(amounts)
        elif len(self._pending) < MOST_PENDING:
            self._pending[place] = amounts
        else:
            if not self._lost:
                logger.error("Usage is lost: the store cannot be written, and no more of it can be kept in memory")
            self._lost += 1

    def _connect(self, *, create: bool = False) -> bool:
        """Have the file open that lies at the path now; False where there is none, and none is wanted."""
        if self._path is None:
            return False
        try:
            file = os.stat(self._path).st_ino
        except FileNotFoundError:
            file = -1
        if self._connection and file != self._file:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection, self._version = None, -1
        if self._connection is None and (create or file != -1):
            self._connection = open_database(self._path, wait=_WAIT)
            self._file = os.stat(self._path).st_ino
        return self._connection is not None

    def _read_changes(self) -> None:
        """Read again if somebody else has written."""
        assert self._connection
        version = self._connection.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self._read()
            self._version = version

    def _read(self) -> None:
        assert self._connection
        self.keys = tuple(keys.every(self._connection))
        month = usage.day_of(self._clock())[:7]
        stored = usage.query(self._connection, since=f"{month}-01")
        with self._lock:
            self._spent.clear()
            for place, amounts in (*stored, *self._pending.items()):
                for period in (place.day, place.day[:7]):
                    self._spent[place.key, period] += amounts.tokens

    def _tell(self, problem: str | None) -> None:
        if problem and not self.problem:
            logger.error("The store %s cannot be used: %s. Usage is kept in memory until it can", self._path, problem)
        elif self.problem and not problem:
            logger.info("The store %s can be used again", self._path)
        self.problem = problem


def totals(rows: Iterable[tuple[Place, Amounts]]) -> Amounts:
    """The sum of what was used."""
    total = Amounts()
    for _, amounts in rows:
        total.add(amounts)
    return total
