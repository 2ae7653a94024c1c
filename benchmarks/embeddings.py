"""Arriero over HTTP and sentence-transformers in this process, on the same texts, in one run, taking turns.

    python benchmarks/embeddings.py [--model all-MiniLM-L6-v2] [--sizes 1,32] [--repetitions 7] [--json FILE]

Texts are random English words, 2 to 160 of them, short ones more often (evenly spread on a logarithmic scale), new in
every repetition. A burst is 64 texts in calls of 1, or 256 in calls of 32, one call after the other; a call to Arriero
is an HTTP request on a connection that is kept, answered in base64 and decoded into an array. sentence-transformers
runs on torch's CPU kernels in float32 with as many threads as there are cores. Figures are texts a second, the median
of the repetitions, and the median of the ratios of bursts that had the same texts; then the cosine distances between
the vectors of both. Needs the `reference` extra.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from arriero import config_sources
from arriero.bench.words import prompt
from arriero.models.sources.resolve import resolve
from machine import THREADS, busy_seconds, machine, own_seconds, serve_arriero, wait_for_quiet

FEWEST, MOST = 2, 160
"""Words of a text."""
BURSTS = {1: 64}
CALLS = 8
"""In a burst, unless BURSTS has the size."""
WEIGHTS = ("fp32", "int8")
REFERENCE = "sentence-transformers"

Vectors = np.ndarray[Any, np.dtype[np.float32]]
Embed = Callable[[Sequence[str]], Vectors]


def texts(count: int, seed: int) -> list[str]:
    """The same for the same seed."""
    draw = random.Random(seed)
    lengths = [round(FEWEST * (MOST / FEWEST) ** draw.random()) for _ in range(count)]
    return [prompt(length, seed, index) for index, length in enumerate(lengths)]


def over_http(client: httpx.Client, url: str) -> Embed:
    """One call of Arriero's API."""

    def embed(inputs: Sequence[str]) -> Vectors:
        answer = client.post(f"{url}/embeddings", json={"input": inputs, "encoding_format": "base64"})
        answer.raise_for_status()
        rows = [np.frombuffer(base64.b64decode(each["embedding"]), np.float32) for each in answer.json()["data"]]
        return np.stack(rows)

    return embed


def in_process(path: Path) -> Embed:
    """sentence-transformers as its documentation has it."""
    torch.set_num_threads(THREADS)
    model = SentenceTransformer(str(path), device="cpu")

    def embed(inputs: Sequence[str]) -> Vectors:
        vectors: Vectors = model.encode(list(inputs), show_progress_bar=False)
        return vectors

    return embed


def burst(embed: Embed, inputs: Sequence[str], size: int) -> tuple[dict[str, float], Vectors]:
    """All inputs in calls of `size`: texts a second, cores that others took meanwhile; and the vectors."""
    busy, own, started = busy_seconds(), own_seconds(), time.perf_counter()
    vectors = [embed(inputs[start : start + size]) for start in range(0, len(inputs), size)]
    seconds = time.perf_counter() - started
    others = (busy_seconds() - busy - (own_seconds() - own)) / seconds
    return {"texts_per_second": len(inputs) / seconds, "others_cores": round(others, 2)}, np.concatenate(vectors)


def compare(contestants: dict[str, Embed], size: int, repetitions: int) -> dict[str, Any]:
    """Bursts of all in turns, who begins changing every time; figures by name."""
    bursts: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    distances: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for repetition in range(repetitions):
        inputs = texts(BURSTS.get(size, CALLS * size), 1000 * size + repetition)
        found = {}
        for name in names[repetition % len(names) :] + names[: repetition % len(names)]:
            wait_for_quiet()
            contestants[name](inputs[:size])
            figure, found[name] = burst(contestants[name], inputs, size)
            bursts[name].append(figure)
        for name, vectors in found.items():
            distances[name] += _distances(vectors, found[REFERENCE]).tolist()
    theirs = [each["texts_per_second"] for each in bursts[REFERENCE]]
    return {
        name: {
            "bursts": bursts[name],
            "texts_per_second": statistics.median(each["texts_per_second"] for each in bursts[name]),
            "ratio": statistics.median(
                ours["texts_per_second"] / other for ours, other in zip(bursts[name], theirs, strict=True)
            ),
            "mean_distance": statistics.mean(distances[name]),
            "largest_distance": max(distances[name]),
        }
        for name in names
    }


def _distances(one: Vectors, other: Vectors) -> Vectors:
    one, other = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.abs(1 - (one * other).sum(axis=1) / lengths)


def table(figures: dict[int, dict[str, Any]]) -> str:
    lines = [
        "| texts a call | | texts/s | times sentence-transformers | cosine distance: mean | largest |",
        "|" + "---|" * 6,
    ]
    for size, by_name in figures.items():
        for name, each in by_name.items():
            numbers = f"{each['texts_per_second']:.0f} | {each['ratio']:.2f}"
            distances = f"{each['mean_distance']:.1e} | {each['largest_distance']:.1e}"
            lines.append(f"| {size} | {name} | {numbers} | {'-' if name == REFERENCE else distances} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--sizes", default="1,32")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    path = resolve(arguments.model, config_sources.load({}).cache).path
    about = machine(torch=torch.__version__, **{REFERENCE: version(REFERENCE)})
    print(json.dumps(about, indent=2), file=sys.stderr)
    with ExitStack() as stack:
        client = stack.enter_context(httpx.Client(timeout=120))
        contestants = {REFERENCE: in_process(path)}
        for weights in WEIGHTS:
            flags = ["serve", arguments.model, "--port", "0", "--weights", weights, "--log-level", "warning"]
            contestants[f"Arriero {weights}"] = over_http(client, stack.enter_context(serve_arriero(flags)))
        figures = {
            size: compare(contestants, size, arguments.repetitions) for size in map(int, arguments.sizes.split(","))
        }
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": about, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
