"""Arriero and llama.cpp on the same work, in one run, taking turns.

    python benchmarks/compare.py [--clients 1,4,16,48] [--repetitions 3] [--only NAMES] [--json FILE] [--markdown FILE]
    python benchmarks/compare.py --tune      llama.cpp's flags against each other, at 16 clients

Closed loop: every client sends its next request when its last one is answered, two requests a client and at
least six in all. A request is a prompt of 100 random English words that occurs once, and 64 tokens, greedy, end of
sequence ignored, streamed; that there were 64 is read from `usage`. No answer is reused: prompts are new in every
repetition and llama.cpp's prompt cache is off. Nobody speculates. A new connection for each request, because
llama.cpp drops idle ones. All servers of a number of clients run at the same time and are asked in turn.

A figure is output tokens per second over a whole burst, the median of the repetitions. A burst in which processes
other than servers and load generator took more than a tenth of a core is taken again, with new prompts, and if that
never ends is shown with what they took.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp

from arriero import config
from arriero.bench.load import Load, Result, run
from arriero.models.sources.resolve import resolve
from machine import QUIET, THREADS, busy_seconds, machine, own_seconds, serve_arriero, wait_for_quiet

NUM_TOKENS = 64
TRIES = 6
FLASH = {"flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_ENABLED"}
LLAMA_FILES = ("Q4_0", "Q8_0", "Q4_1")
TUNED: Mapping[str, Any] = FLASH
"""Beyond threads, slots and context; the best of VARIANTS."""
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "flash attention": FLASH,
    "flash attention auto": {},
    "flash attention off": {"flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_DISABLED"},
    "ubatch 128": {**FLASH, "n_ubatch": 128},
    "ubatch 2048": {**FLASH, "n_ubatch": 2048},
    "batch 128": {**FLASH, "n_batch": 128, "n_ubatch": 128},
    "unified cache": {**FLASH, "kv_unified": True},
    "no polling": {**FLASH, "cpuparams.poll": 0, "cpuparams_batch.poll": 0},
    "one thread": {**FLASH, "cpuparams.n_threads": 1, "cpuparams_batch.n_threads": 1},
}


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server with its flags."""

    name: str
    flags: Callable[[int], Sequence[str] | Mapping[str, Any]]
    """For a number of clients."""
    serve: Callable[[Any], AbstractContextManager[str]]
    """Run it with those flags; gives its URL."""
    extra_body: Mapping[str, Any]


def arriero(weights: str) -> Contestant:
    """Arriero with the catalog's default model and default settings but the format."""
    return Contestant(
        f"Arriero {weights}",
        lambda clients: ["serve", "--port", "0", "--weights", weights, "--log-level", "warning"],
        serve_arriero,
        {"ignore_eos": True},
    )


def llama(name: str, file: Path, tuning: Mapping[str, Any], cache: Path) -> Contestant:
    """llama.cpp's server with one of the model's files."""
    interpreter = llama_cpp.python(cache / "llama.cpp")

    def flags(clients: int) -> dict[str, Any]:
        return {
            "n_parallel": clients,
            "n_ctx": 512 * clients,
            "cont_batching": True,
            "cpuparams.n_threads": THREADS,
            "cpuparams_batch.n_threads": THREADS,
            "cache_ram_mib": 0,
            "verbosity": 0,
            **tuning,
        }

    def serve(flags: Mapping[str, Any]) -> AbstractContextManager[str]:
        return llama_cpp.server(interpreter, file, dict(flags))

    return Contestant(name, flags, serve, {"ignore_eos": True, "cache_prompt": False})


def burst(contestant: Contestant, url: str, clients: int, seed: int, requests: int) -> dict[str, Any]:
    """One measurement; raises `RuntimeError` unless every answer had all its tokens."""
    busy, own, started = busy_seconds(), own_seconds(), time.perf_counter()
    result = run(
        Load(
            url=url,
            clients=clients,
            requests=requests,
            prompt_tokens=100,
            max_tokens=NUM_TOKENS,
            endpoint="completions",
            extra_body=contestant.extra_body,
            new_connection=True,
            seed=seed,
        )
    )
    seconds = time.perf_counter() - started
    _check(contestant, result, requests)
    first = [each.first_token for each in result.measurements if each.first_token is not None]
    gaps = [each.time_per_token for each in result.measurements if each.time_per_token is not None]
    return {
        "tokens_per_second": result.output_tokens_per_second,
        "prompt_tokens": statistics.mean(each.prompt_tokens for each in result.measurements),
        "first_token": statistics.median(first),
        "time_per_token": statistics.median(gaps),
        "others_cores": max(0.0, (busy_seconds() - busy - own_seconds() + own) / seconds),
        "load_average": os.getloadavg()[0],
    }


def _check(contestant: Contestant, result: Result, requests: int) -> None:
    whole = [each for each in result.answered if each.from_usage and each.output_tokens == NUM_TOKENS]
    if len(whole) != requests:
        counts = sorted({each.output_tokens for each in result.answered})
        raise RuntimeError(f"{contestant.name}: {len(whole)} of {requests} whole; tokens {counts}; {result.errors}")


def quiet_burst(contestant: Contestant, url: str, clients: int, seed: int, requests: int) -> dict[str, Any]:
    """The first burst that others left alone, or the one of several that they left alone most."""
    bursts = []
    for attempt in range(TRIES):
        wait_for_quiet()
        bursts.append(burst(contestant, url, clients, seed + 100 * attempt, requests))
        if bursts[-1]["others_cores"] <= QUIET:
            break
    return min(bursts, key=lambda each: each["others_cores"])


def compare(contestants: Sequence[Contestant], clients: int, repetitions: int) -> dict[str, list[dict[str, Any]]]:
    """Bursts of every contestant at one number of clients, in turn; the same prompts for all in a repetition."""
    bursts: dict[str, list[dict[str, Any]]] = {each.name: [] for each in contestants}
    with ExitStack() as stack:
        urls = {}
        for each in contestants:
            urls[each.name] = stack.enter_context(each.serve(each.flags(clients)))
            burst(each, urls[each.name], 1, seed=-1, requests=1)
        for repetition in range(repetitions):
            for each in contestants:
                figure = quiet_burst(each, urls[each.name], clients, 1000 * clients + repetition, max(6, 2 * clients))
                bursts[each.name].append(figure)
                print(
                    f"{clients:3} clients  {each.name:28} {figure['tokens_per_second']:7.1f} tokens/s"
                    f"   first {figure['first_token'] * 1000:6.0f} ms"
                    f"   per token {figure['time_per_token'] * 1000:5.1f} ms"
                    f"   others {figure['others_cores']:.2f} cores",
                    flush=True,
                )
    return bursts


def table(figures: Mapping[int, Mapping[str, Sequence[Mapping[str, float]]]], quantity: str, scale: float) -> str:
    """Medians in Markdown, and for throughput what they are of llama.cpp's best."""
    levels = list(figures)
    names = list(figures[levels[0]])
    medians = {n: [scale * statistics.median(b[quantity] for b in figures[c][n]) for c in levels] for n in names}
    lines = [f"| clients | {' | '.join(map(str, levels))} |", "|---" * (len(levels) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{value:.0f}' for value in medians[name])} |" for name in names]
    theirs = [medians[name] for name in names if not name.startswith("Arriero")]
    if quantity == "tokens_per_second" and theirs:
        best = [max(column) for column in zip(*theirs, strict=True)]
        for name in names:
            if name.startswith("Arriero"):
                ratios = (f"**{ours / their:.2f}**" for ours, their in zip(medians[name], best, strict=True))
                lines.append(f"| {name} / llama.cpp's best | {' | '.join(ratios)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1,4,16,48")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", help="contestants, by name, separated by commas")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    cache = config.load({}).cache
    files = llama_cpp.model_files(resolve(None, cache).path, cache / "benchmarks")
    if arguments.tune:
        levels = [16]
        contestants = [llama(name, files["Q4_0"], variant, cache) for name, variant in VARIANTS.items()]
    else:
        levels = [int(part) for part in arguments.clients.split(",")]
        contestants = [arriero("int8"), arriero("int4")]
        contestants += [llama(f"llama.cpp {kind}", files[kind], TUNED, cache) for kind in LLAMA_FILES]
    if arguments.only:
        names = {each.name for each in contestants}
        chosen = set(arguments.only.split(","))
        if not chosen <= names:
            parser.error(f"--only takes some of: {', '.join(sorted(names))}")
        contestants = [each for each in contestants if each.name in chosen]
    about = machine(**{"llama.cpp": llama_cpp.PACKAGE})
    print(json.dumps(about, indent=2))
    for each in contestants:
        flags = each.flags(levels[-1])
        print(f"{each.name}: {shlex.join(flags) if isinstance(flags, list) else json.dumps(flags)}")
    figures = {clients: compare(contestants, clients, arguments.repetitions) for clients in levels}
    text = (
        f"Output tokens per second:\n\n{table(figures, 'tokens_per_second', 1)}\n\n"
        f"Milliseconds to the first token, median:\n\n{table(figures, 'first_token', 1000)}\n"
    )
    print(f"\n{text}")
    if arguments.markdown:
        arguments.markdown.write_text(text)
    if arguments.json:
        flags_of = {each.name: each.flags(levels[-1]) for each in contestants}
        arguments.json.write_text(json.dumps({"machine": about, "flags": flags_of, "bursts": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
