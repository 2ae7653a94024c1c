"""What a request's sampling settings cost its neighbours: greedy rows among greedy rows, and among all the others.

    python benchmarks/mixed_batch.py [--rounds 7] [--json FILE]

Both run on one engine, without HTTP, by turns in one run: 15 greedy answers beside one row for each of `KINDS`, and the
same 15 beside as many greedy ones. What counts is the time that a token of the 15 takes once every prompt is read: the
median of the 15, then the median over the turns. The greedy rows have to keep 90 % of their speed.

First with the real model in int8. Then with its logits but without the model, which shows what scheduler and sampler
take, for all kinds together and for each alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arriero import config_sources
from arriero.compute import Row, Runner, RunnerInfo, Want
from arriero.core import Event, GenerationRequest, Sampling, Token
from arriero.engine.local import LocalEngine
from arriero.machine import physical_cores
from arriero.models.calibration import calibration
from arriero.models.checkpoint import open_checkpoint
from arriero.models.sources.resolve import resolve
from arriero.models.tokenizers.tokenizer import load_tokenizer
from arriero.runners.onnx import load_runner
from arriero.text.stop import stop_constraints

LEAST = 0.9
NUM_WATCHED = 15
PROMPT, ANSWER = 100, 64
SETTLED = 16
"""Tokens of an answer after which every prompt is read."""
SLOTS, CONTEXT = 32, 256

GREEDY = Sampling(temperature=0)
KINDS: dict[str, dict[str, Any]] = {
    "temperature": {"sampling": Sampling(temperature=0.8)},
    "top_k 50": {"sampling": Sampling(top_k=50)},
    "top_p 0.95": {"sampling": Sampling(top_p=0.95)},
    "min_p 0.05": {"sampling": Sampling(min_p=0.05)},
    "typical_p 0.9": {"sampling": Sampling(typical_p=0.9)},
    "all filters, hot": {"sampling": Sampling(temperature=2, top_k=1000, top_p=0.95, min_p=0.01, typical_p=0.9)},
    "penalties": {
        "sampling": Sampling(temperature=0, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.5)
    },
    "no_repeat_ngram_size 3": {"sampling": Sampling(temperature=0, no_repeat_ngram_size=3)},
    "logit_bias of 300": {
        "sampling": Sampling(temperature=0, logit_bias=tuple((token, 1.0) for token in range(100, 400)))
    },
    "min_tokens": {"min_tokens": ANSWER, "end_token_ids": frozenset({0, 2})},
    "logprobs 20": {"logprobs": 20},
    "four stop strings": {"stop_strings": ("zebra stripes", "<<<", "\n\n\n\n\n\n", "the end of all")},
}


class Replayed:
    """A runner that computes nothing: its rows get given logits, one after the other."""

    def __init__(self, info: RunnerInfo, logits: NDArray[np.float32]) -> None:
        self.info = info
        self._logits = logits
        self._num_given = 0

    def step(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """The next logits, one row for each of `rows` that wants any."""
        count = sum(row.want is not Want.NOTHING for row in rows)
        start = self._num_given % (len(self._logits) - count)
        self._num_given += 1
        return self._logits[start : start + count]

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Nothing to copy."""

    def truncate(self, slot: int, length: int) -> None:
        """Nothing to forget."""

    def free(self, slot: int) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to release."""


def requests(kinds: Sequence[str], num_others: int, turn: int, vocab_size: int) -> list[GenerationRequest]:
    """The watched requests first, then one of each kind, then greedy ones until there are `num_others` others."""
    dice = np.random.default_rng(turn)
    rows = [dice.integers(1000, vocab_size, PROMPT).tolist() for _ in range(NUM_WATCHED + num_others)]
    plain = [
        GenerationRequest(id=str(place), prompts=(tuple(row),), max_tokens=ANSWER, sampling=GREEDY)
        for place, row in enumerate(rows)
    ]
    others = [replace(request, **KINDS[kind]) for request, kind in zip(plain[NUM_WATCHED:], kinds, strict=False)]
    return plain[:NUM_WATCHED] + others + plain[NUM_WATCHED + len(others) :]


async def milliseconds(engine: LocalEngine, asked: Sequence[GenerationRequest]) -> float:
    """What a token of the watched answers takes: the median answer."""
    arrivals: list[list[float]] = [[] for _ in range(NUM_WATCHED)]

    async def read(place: int, request: GenerationRequest) -> None:
        async for events in engine.generate(request):
            if place < NUM_WATCHED:
                arrivals[place] += [time.perf_counter()] * _num_tokens(events)

    await asyncio.gather(*(read(place, request) for place, request in enumerate(asked)))
    return statistics.median((times[-1] - times[SETTLED]) / (ANSWER - 1 - SETTLED) for times in arrivals) * 1000


def _num_tokens(events: Sequence[Event]) -> int:
    return sum(isinstance(event, Token) for event in events)


async def compare(
    engine: LocalEngine, contestants: dict[str, Callable[[int], list[GenerationRequest]]], rounds: int
) -> dict[str, float]:
    """By name the median over the rounds; the contestants take turns, and one round before does not count."""
    await engine.start()
    try:
        seen: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(rounds + 1):
            for name, make in contestants.items():
                taken = await milliseconds(engine, make(turn))
                if turn:
                    seen[name].append(taken)
    finally:
        await engine.close()
    return {name: statistics.median(values) for name, values in seen.items()}


def contestants_of(
    lists: dict[str, Sequence[str]], vocab_size: int
) -> dict[str, Callable[[int], list[GenerationRequest]]]:
    """Each list of kinds, and as many greedy rows, by the number of rows."""
    made: dict[str, Callable[[int], list[GenerationRequest]]] = {}
    for name, kinds in lists.items():
        count = len(kinds)
        made[f"greedy, {NUM_WATCHED + count} rows"] = lambda turn, n=count: requests([], n, turn, vocab_size)
        made[name] = lambda turn, kinds=kinds: requests(kinds, len(kinds), turn, vocab_size)
    return made


def run(rounds: int) -> dict[str, Any]:
    """Load the model, measure with it and without it."""
    cache = config_sources.load({}).cache
    path = resolve(None, cache).path
    checkpoint, tokenizer = open_checkpoint(path), load_tokenizer(path)
    read = calibration(tokenizer, checkpoint.config.context, checkpoint.config.vocab_size)
    options: dict[str, Any] = {"slots": SLOTS, "context": CONTEXT, "threads": physical_cores(), "cache": cache}
    runner: Runner = load_runner(checkpoint, weights="int8", calibration=read, **options)
    text = read.tokens()[:CONTEXT]
    logits = runner.step([Row(0, text, 0, Want.ALL)]).copy()
    runner.free(0)
    info, constraints = runner.info, stop_constraints(tokenizer)

    everything = {"one of each kind beside them": list(KINDS)}
    alone = everything | {name: [name] for name in KINDS}
    with_model = contestants_of(everything, info.vocab_size)
    without = contestants_of(alone, info.vocab_size)
    budget = SLOTS * CONTEXT
    return {
        "with": asyncio.run(
            compare(LocalEngine(lambda: runner, constraints=constraints, token_budget=budget), with_model, rounds)
        ),
        "without": asyncio.run(
            compare(LocalEngine(lambda: Replayed(info, logits), constraints=constraints), without, rounds)
        ),
    }


def show(found: dict[str, Any]) -> bool:
    """Print what was found; whether the greedy rows keep their speed."""
    rows = f"greedy, {NUM_WATCHED + len(KINDS)} rows"
    mixed = "one of each kind beside them"
    ratio = found["with"][rows] / found["with"][mixed]
    print(f"| {NUM_WATCHED} greedy answers beside | ms a step, SmolLM2-135M int8 | ms a step, no model |")
    print("|---|---|---|")
    print(f"| {len(KINDS)} greedy ones | {found['with'][rows]:.2f} | {found['without'][rows]:.2f} |")
    print(f"| one of each kind | {found['with'][mixed]:.2f} | {found['without'][mixed]:.2f} |")
    single = f"greedy, {NUM_WATCHED + 1} rows"
    print(f"| one greedy one | | {found['without'][single]:.2f} |")
    for kind in KINDS:
        print(f"| {kind} | | {found['without'][kind]:.2f} |")
    print(f"\nThe greedy answers keep {ratio:.1%} of their speed; at least {LEAST:.0%}: ", end="")
    print("passed" if ratio >= LEAST else "FAILED")
    return ratio >= LEAST


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    found = run(arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if not show(found):
        sys.exit(1)


if __name__ == "__main__":
    main()
