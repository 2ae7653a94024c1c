"""What a server takes before it earns anything: the time to start and the memory, Arriero and llama.cpp by turns.

    python benchmarks/resources.py [start memory] [--repetitions 5] [--only NAMES]

- start: from the start of the process to the end of its first answer of 8 tokens. The model is converted and the
  system's file cache warm: each has started once before.
- memory: of the process and all that it started, half a second after the first answer ("at rest") and at most while
  16 clients get two answers each. Proportional set size, so pages of mapped files count, the weights among them, for
  everybody alike; only one server runs at a time, or they would share pages.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from contestants import CONTEXT, Contestant, by_turns, line_up, put
from figures import Figures, Verdict, best, chosen, medians, run_named
from machine import own_memory

CLIENTS = 16
MEGABYTE = 1e6
ALLOWANCE = 150.0
"""Megabytes that Arriero may take beyond llama.cpp."""
PRECISION = {"Arriero int8": "llama.cpp Q8_0", "Arriero int4": "llama.cpp Q4_0"}


def start(repetitions: int, only: set[str] | None) -> Figures:
    contestants = chosen(line_up(files=("Q4_0", "Q8_0")), only)

    def answer_once(each: Contestant, url: str, seed: int) -> dict[str, float]:
        started = time.perf_counter()
        with each.serve(each.flags(4, 2048)) as url:
            put(each, url, requests=1, prompt_tokens=10, max_tokens=8, seed=seed)
            return {"first answer": time.perf_counter() - started}

    nowhere = {each.name: "" for each in contestants}
    for each in contestants:
        answer_once(each, "", 0)
    values = by_turns(contestants, nowhere, repetitions, answer_once)
    middle = medians(values["first answer"])
    ours = [each for each in contestants if each.ours]
    verdicts = [Verdict(f"{each.name}, seconds", middle[each.name], 2, at_least=False) for each in ours]
    if len(ours) < len(contestants):
        top = best(middle, contestants, least=True)
        verdicts += [Verdict(f"{each.name} / llama.cpp's best", middle[each.name] / top, 1, False) for each in ours]
    return Figures(
        name="start",
        title="From process start to the end of the first answer, model cached",
        unit="s",
        values=values,
        verdicts=verdicts,
        flags={each.name: each.shown_flags(4, 2048) for each in contestants},
    )


def memory(repetitions: int, only: set[str] | None) -> Figures:
    contestants = chosen(line_up(files=("Q4_0", "Q8_0")), only)

    def weigh(each: Contestant, url: str, seed: int) -> dict[str, float]:
        with each.serve(each.flags(CLIENTS, CONTEXT)) as url:
            put(each, url, requests=1, max_tokens=8, seed=seed)
            time.sleep(0.5)
            rest = own_memory()
            with _watch() as seen:
                put(each, url, clients=CLIENTS, requests=2 * CLIENTS, max_tokens=64, seed=seed + 1)
        return {"at rest": rest / MEGABYTE, f"{CLIENTS} clients": max(seen) / MEGABYTE}

    values = by_turns(contestants, {each.name: "" for each in contestants}, repetitions, weigh)
    return Figures(
        name="memory",
        title="Memory of the server's processes",
        unit="MB",
        values=values,
        verdicts=_differences(values, contestants),
        flags={each.name: each.shown_flags(CLIENTS) for each in contestants},
    )


@contextmanager
def _watch() -> Iterator[list[int]]:
    """Weigh all servers a few times a second, as long as it is entered."""
    seen, done = [own_memory()], threading.Event()

    def look() -> None:
        while not done.wait(0.25):
            seen.append(own_memory())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def _differences(
    values: Mapping[str, Mapping[str, Sequence[float]]], contestants: Sequence[Contestant]
) -> list[Verdict]:
    found = []
    for condition, by_name in values.items():
        middle = medians(by_name)
        for each in contestants:
            if (theirs := PRECISION.get(each.name)) in middle:
                what = f"{each.name} - {theirs}, MB {condition}"
                found.append(Verdict(what, middle[each.name] - middle[theirs], ALLOWANCE, at_least=False))
    return found


RESOURCES = {each.__name__: each for each in (start, memory)}


if __name__ == "__main__":
    run_named(RESOURCES, __doc__, repetitions=5)
