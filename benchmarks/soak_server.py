"""Servers of our own, each a process with keys and a store, and what they hold, seen from outside."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arriero.store import keys
from arriero.store.database import open_database
from soak_clients import Client, Server, read

WARDEN = "warden"
"""The key of who looks after the server."""


@dataclass
class Running:
    """A server of our own."""

    process: subprocess.Popen[str]
    server: Server
    keys: dict[str, str]
    names: dict[str, str]
    store: Path


@contextmanager
def running(
    arguments: Sequence[str],
    kinds: Mapping[str, Mapping[str, Any]],
    directory: Path | None = None,
    program: Sequence[str] = ("-m", "arriero"),
    **options: Any,
) -> Iterator[Running]:
    """One that has a key for each of `kinds`, with these limits, and one for the warden.

    The store lies in `directory`; one that is there already is left as it is. `program` is what Python runs, `options`
    are for the process.
    """
    with tempfile.TemporaryDirectory() as temporary:
        store = Path(directory or temporary, "arriero.db")
        texts, names = {}, {}
        if not store.exists():
            with closing(open_database(store)) as connection:
                for name, scope in {**kinds, WARDEN: {"admin": True}}.items():
                    key, texts[name] = keys.new_key(name, **scope)
                    names[key.id] = name
                    keys.insert(connection, key)
        command = [sys.executable, *program, "serve", "--port", "0", "--store", str(store), *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
            try:
                assert process.stdout
                url = re.search(r"http://([^/:]+):(\d+)", process.stdout.readline())
                assert url, "the server did not start"
                yield Running(process, Server(url[1], int(url[2])), texts, names, store)
            finally:
                process.kill()


@dataclass(frozen=True)
class Rest:
    """What a server and its models' processes hold when they have nothing to do."""

    megabytes: float
    open_files: int
    threads: int
    tasks: int
    slots: int
    waiting: int
    reserved_tokens: int


class Watch:
    """Looks at a server from outside."""

    def __init__(self, warden: Client, pid: int) -> None:
        self._warden = warden
        self._pid = pid

    async def get(self, path: str) -> bytes:
        async with self._warden.connected() as (reader, writer):
            lines = f"GET {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {self._warden.key}\r\nconnection: close\r\n\r\n"
            writer.write(lines.encode())
            return (await read(reader)).body

    async def rest(self) -> Rest:
        """What the server holds, once it is idle; waits a minute at most."""
        for _ in range(240):
            await asyncio.sleep(0.25)
            seen = await self._measured()
            if not (seen.slots or seen.waiting or seen.reserved_tokens or seen.tasks > 16):
                break
        looks = [seen]
        for _ in range(4):  # SQLite opens files for moments
            await asyncio.sleep(0.25)
            looks.append(await self._measured())
        lowest = {name: min(getattr(each, name) for each in looks) for name in ("open_files", "tasks", "threads")}
        return replace(looks[-1], **lowest)

    async def total(self, name: str) -> int:
        return _total((await self.get("/metrics")).decode(), name)

    async def _measured(self) -> Rest:
        metrics = (await self.get("/metrics")).decode()
        family = [self._pid, *children(self._pid)]
        return Rest(
            megabytes=round(sum(resident(each) for each in family) / 2**20, 1),
            open_files=sum(len(os.listdir(f"/proc/{each}/fd")) for each in family),
            threads=sum(len(os.listdir(f"/proc/{each}/task")) for each in family),
            tasks=_total(metrics, "arriero_event_loop_tasks"),
            slots=_total(metrics, "arriero_slots_used"),
            waiting=_total(metrics, "arriero_requests_waiting"),
            reserved_tokens=_total(metrics, "arriero_reserved_tokens"),
        )


def _total(metrics: str, name: str) -> int:
    return int(sum(map(float, re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", metrics, re.M))))


def children(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Row:
    """What the store has of one key."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


def read_rows(store: Path, names: dict[str, str]) -> dict[str, Row]:
    """By the names of keys; `names` is from their ids."""
    columns = "SUM(requests), SUM(prompt_tokens), SUM(completion_tokens)"
    with closing(sqlite3.connect(store)) as connection:
        rows = connection.execute(f"SELECT key, {columns} FROM usage GROUP BY key").fetchall()
    return {names.get(key, key): Row(*amounts) for key, *amounts in rows}
