"""Many clients at once, most of them badly behaved; what is left of it in the server afterwards has to be nothing.

    python benchmarks/soak.py                                   # 500 clients for 60 s on a scripted model
    python benchmarks/soak.py --clients 64 --seconds 300 -- SmolLM2-135M-Instruct

What stands behind `--` is for `arriero serve`. The server asks for keys, and each kind of client has one of its own, so
that its usage can be compared with what these clients were told. Ends with status 1 if a client saw what it should
not, if one that behaves had to wait for longer than `--patience`, if anything stayed behind, or if the books are wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from soak_clients import BEHAVIOURS, EXACT, HEALTHY, LIMITS, QUESTIONS, Client, Server, Told, read
from soak_server import WARDEN, Rest, Row, Running, Watch, read_rows, running

PATIENCE = 120.0
"""Seconds after which a client that behaves gives up; a server that lets it wait so long has failed."""
SCRIPTED = ("--engine", "scripted", "--pace", "200")
KEPT = 16
"""Megabytes by which memory may grow: one of the largest bodies. Nothing that clients did stays, and at rest what was
freed goes back to the system; what remains is made once and kept: threads, caches of bounded size, runtimes' tables."""
_REST = 5.0
"""Seconds after which a server that has nothing to do has given back memory."""
_POOL = 6
"""Threads that an event loop's pool may still start, of the few that it may have at most."""
_LATE = 4
"""Tokens that an engine may draw for a request that was given up: one a choice, in the step that runs then."""


@dataclass
class Soak:
    """Clients at work, and what became of their requests."""

    server: Server
    keys: dict[str, str]
    told: dict[str, Told]
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)

    async def run(self, clients: int, seconds: float, seed: int) -> None:
        """So many clients for so long, each with its next request when the last is over."""
        end = time.monotonic() + seconds
        names, weights = list(BEHAVIOURS), [weight for _, _, weight in BEHAVIOURS.values()]

        async def client(number: int) -> None:
            draw = random.Random(seed * 100_000 + number)
            await asyncio.sleep(draw.uniform(0, min(1.0, seconds / 4)))
            while time.monotonic() < end:
                [name] = draw.choices(names, weights)
                await self._visit(name, draw)

        await asyncio.gather(*(client(number) for number in range(clients)))

    async def _visit(self, name: str, draw: random.Random) -> None:
        behaviour, allowed, _ = BEHAVIOURS[name]
        try:
            async with asyncio.timeout(PATIENCE):
                outcome = await behaviour(Client(self.server, draw, self.keys[name], self.told[name]))
        except TimeoutError:
            outcome = "timeout"
        except (OSError, asyncio.IncompleteReadError) as error:
            outcome = type(error).__name__
        self.outcomes[name, outcome] += 1
        if outcome not in allowed:
            self.wrong[f"{name}: {outcome}"] += 1


# Whether the books are right


@dataclass(frozen=True)
class Books:
    """What the store has by key's name, what clients were told, and what the engines drew."""

    rows: dict[str, Row]
    told: dict[str, Told]
    counted: int
    """Answers' tokens in the server's metrics."""
    drawn: int
    """Tokens that the engines drew, of answers that were broken off too."""

    @property
    def completion_tokens(self) -> int:
        return sum(row.completion_tokens for row in self.rows.values())

    @property
    def faults(self) -> Iterator[str]:
        for name, told in self.told.items():
            row = self.rows.get(name, Row())
            low = (told.requests, told.prompt_tokens, told.completion_tokens + told.seen)
            found = (row.requests, row.prompt_tokens, row.completion_tokens)
            if found != low if name in EXACT else any(a < b for a, b in zip(found[1:], low[1:], strict=True)):
                yield f"usage of '{name}' is {found}, clients were told {low}"
            if not told.requests <= row.requests <= told.requests + told.broken_off:
                yield f"{row.requests} requests of '{name}', clients sent {told.requests} to {told.broken_off} more"
        if self.counted != self.completion_tokens:
            yield f"{self.completion_tokens} tokens in the store, {self.counted} in the metrics"
        most = self.completion_tokens + _LATE * sum(each.broken_off + each.requests for each in self._given_up)
        if not self.completion_tokens <= self.drawn <= most:
            yield f"{self.completion_tokens} tokens in the store, {self.drawn} were drawn"

    @property
    def _given_up(self) -> Iterator[Told]:
        return (told for name, told in self.told.items() if name not in EXACT)


# The whole


@dataclass(frozen=True)
class Report:
    """How it went."""

    clients: int
    seconds: float
    patience: float
    kept: float
    """Megabytes by which memory may have grown."""
    outcomes: dict[str, dict[str, int]]
    wrong: dict[str, int]
    before: Rest
    after: Rest
    books: Books
    status: int
    """With which the server ended when it was told to."""

    @property
    def times(self) -> list[float]:
        """Seconds that the healthy waited for whole answers, sorted."""
        return sorted(second for name in HEALTHY for second in self.books.told[name].seconds)

    @property
    def faults(self) -> list[str]:
        """What should not be."""
        faults = [f"{what} ({number} times)" for what, number in self.wrong.items()]
        for name in ("open_files", "threads", "tasks", "slots", "waiting", "reserved_tokens"):
            was, now = getattr(self.before, name), getattr(self.after, name)
            if now > was + (_POOL if name == "threads" else 0):
                faults.append(f"{name}: {was} before, {now} after")
        if self.after.megabytes > self.before.megabytes + self.kept:
            faults.append(f"memory: {self.before.megabytes} MB before, {self.after.megabytes} MB after")
        if not self.times:
            faults.append("nobody who behaved was answered")
        elif self.times[-1] > self.patience:
            faults.append(f"one that behaved waited for {self.times[-1]:.1f} s, more than {self.patience:g}")
        if self.status:
            faults.append(f"the server ended with status {self.status}")
        return faults + list(self.books.faults)

    @property
    def lines(self) -> list[str]:
        """For people."""
        total = sum(number for counts in self.outcomes.values() for number in counts.values())
        lines = [f"{self.clients} clients for {self.seconds:g} s, {total} visits"]
        for name, counts in self.outcomes.items():
            lines.append(f"  {name:16} " + ", ".join(f"{outcome}: {number}" for outcome, number in counts.items()))
        for name in self.before.__dataclass_fields__:
            lines.append(f"  {name:16} {getattr(self.before, name)} -> {getattr(self.after, name)}")
        times = self.times or [0.0]
        middle, late = times[len(times) // 2], times[int(len(times) * 0.99)]
        lines.append(
            f"  healthy answers  {len(times)}: p50 {middle:.2f} s, p99 {late:.2f} s, longest {times[-1]:.2f} s"
        )
        books = self.books
        exact = [told for name, told in books.told.items() if name in EXACT]
        lines.append(
            f"  usage            {sum(row.requests for row in books.rows.values())} requests; "
            f"{sum(told.completion_tokens for told in exact)} tokens told, {books.completion_tokens} stored, "
            f"{books.counted} in the metrics, {books.drawn} drawn, "
            f"{sum(told.broken_off for told in books.told.values())} requests broken off"
        )
        return lines


def soak(
    arguments: Sequence[str], clients: int, seconds: float, patience: float = PATIENCE, kept: float = KEPT
) -> Report:
    """Start a server with these arguments, let the clients loose on it, and look what is left."""
    kinds = {name: LIMITS.get(name, {}) for name in BEHAVIOURS}
    with running(["--log-level", "error", *arguments], kinds) as run:
        told = {name: Told() for name in run.keys}
        report = asyncio.run(_soak(run, told, clients, seconds))
        run.process.terminate()
        status = run.process.wait(60)
        outcomes, wrong, before, after, counted, drawn = report
        books = Books(read_rows(run.store, run.names), told, counted, drawn)
    return Report(clients, seconds, patience, kept, outcomes, wrong, before, after, books, status)


async def _soak(run: Running, told: dict[str, Told], clients: int, seconds: float) -> tuple[Any, ...]:
    warden = Client(run.server, random.Random(0), run.keys[WARDEN], told[WARDEN])
    watch = Watch(warden, run.process.pid)
    for model in json.loads(await watch.get("/v1/models"))["data"]:
        run.server.models[model["id"]] = await _learn(warden, model["id"])
    await Soak(run.server, run.keys, told).run(clients, min(10.0, seconds / 4), seed=1)
    await asyncio.sleep(min(_REST, seconds / 10))
    before = await watch.rest()
    for each in told.values():
        each.seconds.clear()
    loose = Soak(run.server, run.keys, told)
    await loose.run(clients, seconds, seed=2)
    outcomes: dict[str, dict[str, int]] = {name: {} for name in BEHAVIOURS}
    for (name, outcome), number in sorted(loose.outcomes.items()):
        outcomes[name][outcome] = number
    await asyncio.sleep(min(_REST, seconds / 10))
    after = await watch.rest()
    counted = await watch.total("arriero_generation_tokens_total")
    drawn = await watch.total("arriero_engine_generation_tokens_total")
    return outcomes, dict(loose.wrong), before, after, counted, drawn


async def _learn(warden: Client, model: str) -> dict[str, str] | None:
    """What a model answers to whom it has to itself; None: it says what it is asked."""
    answers = {}
    for text in QUESTIONS:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 32, "temperature": 0}
        async with warden.connected() as (reader, writer):
            writer.write(warden.post("/v1/chat/completions", json.dumps(body).encode()))
            answer = await read(reader)
        answers[text] = json.loads(answer.body)["choices"][0]["message"]["content"]
        warden.judge(answer, answers[text])
    return None if all(text[:30] == answer[:30] for text, answer in answers.items()) else answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--patience", type=float, default=30.0, help="seconds that one who behaves may have to wait")
    parser.add_argument("serve", nargs="*", default=SCRIPTED, help="arguments of arriero serve, behind --")
    chosen = parser.parse_args()
    report = soak(chosen.serve, chosen.clients, chosen.seconds, chosen.patience)
    print("\n".join(report.lines))
    print("\n".join(f"WRONG {fault}" for fault in report.faults) or "Nothing stayed behind.")
    sys.exit(1 if report.faults else 0)


if __name__ == "__main__":
    main()
