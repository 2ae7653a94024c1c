"""Processes that are killed or frozen, and a store that cannot be written, while clients are being answered."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abuse.conftest import LONG, House, chat
from soak_clients import Client, Told, ask, stream
from soak_server import Row, Running, children, read_rows, running

NUM_CLIENTS = 20
DEATHS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL, signal.SIGSTOP) if LONG else (signal.SIGKILL,)
SCRIPTED = ("--engine", "scripted", "--pace", "300", "--log-level", "error")
LOST = 1.0 if LONG else 2.0
"""Seconds of usage that a killed server may lose; on a machine that is busy with other tests they are longer."""


async def test_a_model_s_process_that_dies_or_freezes_is_replaced_under_load(
    house: House, figures: Callable[[str], None]
) -> None:
    """Who was told nothing yet gets the right answer all the same, others an error that says what happened."""
    body = chat("child", "What did the mule bring?", max_tokens=60, ignore_eos=True, temperature=0)
    seen: Counter[str] = Counter()
    ending = asyncio.Event()
    before = await house.watch.total("arriero_engine_restarts_total")
    async with house.client("alice") as client:
        right = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]["message"]["content"]

        async def keep_asking(streams: bool) -> None:
            while not ending.is_set():
                answer = await client.post("/v1/chat/completions", json={**body, "stream": streams})
                seen[outcome(answer.status_code, answer.text, right)] += 1

        async with asyncio.TaskGroup() as clients:
            for number in range(8):
                clients.create_task(keep_asking(number % 2 == 1))
            for number, death in enumerate(DEATHS, 1):
                answers = seen["right"]
                while seen["right"] < answers + 8:  # noqa: ASYNC110  # nobody announces it
                    await asyncio.sleep(0.01)
                (child,) = children(house.run.process.pid)
                os.kill(child, death)
                await house.until("arriero_engine_restarts_total", lambda now, number=number: now == before + number)
            answers = seen["right"]
            while seen["right"] < answers + 8:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            ending.set()
    told = ", ".join(f"{what}: {number}" for what, number in sorted(seen.items()))
    figures(f"a model's process, ended by {', '.join(each.name for each in DEATHS)} under 8 clients: {told}")
    assert seen.keys() <= {"right", "engine_died amid a stream", "503 overloaded"}


def outcome(status: int, text: str, right: str) -> str:
    if status != 200:
        return f"{status} {json.loads(text)['error']['code']}"
    if not text.startswith(("data: ", ":")):  # a stream may begin with a sign of life
        return "right" if json.loads(text)["choices"][0]["message"]["content"] == right else "wrong"
    events = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    said = ""
    for event in events:
        if event == "[DONE]":
            return "right" if said == right else "wrong"
        chunk = json.loads(event)
        if "error" in chunk:
            return f"{chunk['error']['code']} amid a stream" if right.startswith(said) else "wrong"
        said += chunk["choices"][0]["delta"].get("content") or ""
    return "without an end"


# The server itself, and its store


@dataclass
class Load:
    """Clients at work, and when they were told what."""

    run: Running
    told: Told = field(default_factory=Told)
    history: list[tuple[float, int, int]] = field(default_factory=lambda: [(0.0, 0, 0)])
    """Time, and the requests and answers' tokens of which clients knew then."""
    wrong: Counter[str] = field(default_factory=Counter)

    async def keep_asking(self, number: int) -> None:
        draw = random.Random(number)
        while True:
            client = Client(self.run.server, draw, self.run.keys["alice"], self.told)
            outcome = await (ask if number % 2 else stream)(client)
            self.history.append((time.monotonic(), self.told.requests, self.told.completion_tokens))
            if outcome != "200":
                self.wrong[outcome] += 1

    def known_at(self, moment: float) -> tuple[int, int]:
        """The requests and tokens of which clients knew at a time."""
        return max(each[1:] for each in self.history if each[0] <= moment)


@asynccontextmanager
async def load(run: Running) -> AsyncIterator[Load]:
    """Clients at work for the time of the block; whatever their last requests meet is nobody's business."""
    work = Load(run)
    tasks = [asyncio.create_task(work.keep_asking(number)) for number in range(NUM_CLIENTS)]
    try:
        yield work
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError | OSError | asyncio.IncompleteReadError) for each in ends), ends
    assert not work.wrong


def stored(run: Running) -> Row:
    return read_rows(run.store, {}).get(next(id for id, name in run.names.items() if name == "alice"), Row())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0.02)


@contextmanager
def locked(run: Running, directory: Path) -> Iterator[None]:
    """Somebody else holds the store."""
    with closing(sqlite3.connect(run.store, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def forbidden_to_grow(run: Running, directory: Path) -> Iterator[None]:
    """No file of the server's may grow: writes fail as on a full disk, with another number."""
    unlimited = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (1024, unlimited[1]))
    yield
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, unlimited)


@contextmanager
def full(run: Running, directory: Path) -> Iterator[None]:
    """The file system of the store has no byte left."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    yield
    filler.unlink()


@contextmanager
def small_disk(directory: Path) -> Iterator[bool]:
    """Mount a file system of 1 MB there, if that is allowed."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "arriero-proof", str(directory)]
    mounted = LONG and os.geteuid() == 0 and subprocess.run(command, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(directory)], check=True)


async def test_usage_outlives_a_store_that_fails_and_a_server_that_is_killed(
    tmp_path: Path, figures: Callable[[str], None]
) -> None:
    with small_disk(tmp_path) as is_small:
        with running(SCRIPTED, {"alice": {}}, tmp_path) as run:
            run.server.models["scripted"] = None
            for trouble in (locked, full if is_small else forbidden_to_grow):
                await survives(run, tmp_path, trouble, figures)
            before = stored(run)
            async with load(run) as work:
                await until(lambda: bool(work.told.requests))
                await asyncio.sleep(10 if LONG else 2.5)
                killed = time.monotonic()
                run.process.kill()
            run.process.wait()
            after = stored(run)
            least, most = work.known_at(killed - LOST), work.known_at(killed)
            written = (after.requests - before.requests, after.completion_tokens - before.completion_tokens)
            figures(
                f"kill -9 under {NUM_CLIENTS} clients: {written} requests and tokens stored; clients had been told of "
                f"{most}, and of {least} {LOST:g} s before"
            )
            assert all(low <= each for low, each in zip(least, written, strict=True))
            assert written[0] <= most[0] + NUM_CLIENTS
        await goes_on(tmp_path, run, after, figures)


async def survives(run: Running, directory: Path, trouble: Any, figures: Callable[[str], None]) -> None:
    """A while in which the store cannot be written: answers go on, and nothing of their usage is lost."""
    before = stored(run)
    async with load(run) as work:
        await until(lambda: bool(work.told.requests))
        with trouble(run, directory):
            await until(lambda: "warning" in ready(run))
            answered = work.told.requests
            await asyncio.sleep(3 if LONG else 0.5)
            meanwhile = work.told.requests - answered
            await until(lambda: work.told.requests > answered)
            warning = ready(run)["warning"]
        await until(lambda: "warning" not in ready(run))
    # Of what was broken off in the end clients do not know all.
    await until(lambda: stored(run).requests - before.requests >= work.told.requests)
    await asyncio.sleep(1)
    after = stored(run)
    written = (after.requests - before.requests, after.completion_tokens - before.completion_tokens)
    figures(
        f"store '{warning}': {meanwhile} requests answered meanwhile; afterwards {written} requests and tokens stored, "
        f"clients were told of {(work.told.requests, work.told.completion_tokens)}, and left amid {NUM_CLIENTS}"
    )
    assert work.told.requests <= written[0] <= work.told.requests + NUM_CLIENTS
    assert work.told.completion_tokens <= written[1] <= work.told.completion_tokens + NUM_CLIENTS * 200


def ready(run: Running) -> dict[str, Any]:
    """What the server says of itself."""
    command = ["curl", "-s", "-m", "5", f"http://{run.server.host}:{run.server.port}/health/ready"]
    told: dict[str, Any] = json.loads(
        subprocess.run([*command, "-H", f"x-api-key: {run.keys['warden']}"], capture_output=True, check=True).stdout
    )
    return told


async def goes_on(directory: Path, killed: Running, before: Row, figures: Callable[[str], None]) -> None:
    """A server that is started again on the same store knows the keys, and adds to what is there."""
    with running(SCRIPTED, {}, directory) as run:
        run.keys, run.names = killed.keys, killed.names
        run.server.models["scripted"] = None
        assert stored(run) == before
        client = Client(run.server, random.Random(1), run.keys["alice"], Told())
        for _ in range(3):
            assert await ask(client) == "200"
        run.process.terminate()
        assert run.process.wait(20) == 0
        after, told = stored(run), client.told
    assert after.requests == before.requests + told.requests
    assert after.prompt_tokens == before.prompt_tokens + told.prompt_tokens
    assert after.completion_tokens == before.completion_tokens + told.completion_tokens
    figures(f"started again on the same store: {before.completion_tokens} tokens there, {told.completion_tokens} added")
