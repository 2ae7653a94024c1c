"""Where a step of the native engine spends its time, at several numbers of rows and for prompts.

    python benchmarks/step_profile.py [--model MODEL] [--weights int8] [--context 150] [--repetitions 30]

Prints a table in milliseconds: the median step, divided by the shares that the processor's clock gives to the kinds of
operations. What Python does around a step (the plan, embeddings, waking the threads) is the last column.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from arriero import config_sources
from arriero.compute import Row
from arriero.machine import physical_cores
from arriero.models.calibration import calibration
from arriero.models.checkpoint import open_checkpoint
from arriero.models.sources.resolve import resolve
from arriero.models.tokenizers.tokenizer import load_tokenizer
from arriero.runners.native import load_runner
from arriero.runners.native.runner import NativeRunner

ROWS = (1, 4, 16, 48)
PROMPTS = (128, 512)


def profile(runner: NativeRunner, make_rows: Callable[[int], Sequence[Row]], repetitions: int) -> dict[str, float]:
    """Milliseconds of a step and of each kind of operation in it, medians."""
    times, shares = [], defaultdict(list)
    for repetition in range(repetitions):
        rows = make_rows(repetition)
        start = time.perf_counter()
        runner.step(rows)
        times.append(1e3 * (time.perf_counter() - start))
        for kind, share in runner.shares().items():
            shares[kind].append(share)
    total = statistics.median(times)
    return {"step": total, **{kind: total * statistics.median(values) for kind, values in shares.items()}}


def main() -> None:
    """Profile and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--weights", choices=("int8", "int4"), default="int8")
    parser.add_argument("--context", type=int, default=150)
    parser.add_argument("--repetitions", type=int, default=30)
    arguments = parser.parse_args()
    cache: Path = config_sources.load({}).cache
    path = resolve(arguments.model, cache).path
    checkpoint = open_checkpoint(path)
    runner = load_runner(
        checkpoint,
        weights=arguments.weights,
        slots=max(ROWS),
        context=checkpoint.config.context,
        threads=physical_cores(),
        cache=cache,
        calibration=calibration(load_tokenizer(path), checkpoint.config.context, checkpoint.config.vocab_size),
    )
    random = np.random.default_rng(0)

    def draw(count: int) -> list[int]:
        return [int(token) for token in random.integers(0, checkpoint.config.vocab_size, count)]

    def prompt(length: int) -> list[Row]:
        runner.free(0)
        return [Row(0, draw(length), 0)]

    for _ in range(100):  # until the weights are where they stay
        runner.step(prompt(1))
    columns = {}
    for length in PROMPTS:
        columns[f"prompt of {length}"] = profile(runner, lambda _, length=length: prompt(length), 5)  # type: ignore[misc]
    for count in ROWS:
        for slot in range(count):
            runner.free(slot)
            runner.step([Row(slot, draw(arguments.context), 0)])
        columns[f"{count} rows"] = profile(
            runner,
            lambda step, count=count: [  # type: ignore[misc]
                Row(slot, draw(1), arguments.context + step) for slot in range(count)
            ],
            arguments.repetitions,
        )
    runner.close()
    print("| ms | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for kind in columns[f"{ROWS[0]} rows"]:
        print(f"| {kind} | " + " | ".join(f"{column.get(kind, 0):.2f}" for column in columns.values()) + " |")


if __name__ == "__main__":
    main()
