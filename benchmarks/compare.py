"""Arriero and llama.cpp on the same work, in one run, taking turns.

    python benchmarks/compare.py [--clients 1,4,16,48] [--repetitions 2] [--only NAMES] [--output DIRECTORY]
    python benchmarks/compare.py --peers     beside OpenVINO GenAI too, without HTTP
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

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import llama_cpp
from arriero import config_sources
from arriero.models.sources.resolve import resolve
from contestants import FLASH, Contestant, line_up, llama, put, standing
from figures import Figures, Verdict, best, chosen, parser
from machine import quietly
from openvino_genai_peer import openvino

NUM_TOKENS = 64
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
GOALS = {
    "Arriero int8": {1: (1.1, 0.85), 4: (1.8, 1.4), 16: (2.5, 1.9), 48: (3.0, 1.9)},
    "Arriero int4": {1: (1.4, 1.25)},
}
"""Times llama.cpp's best by clients: what it ought to be, and where the work counts as done."""


def burst(contestant: Contestant, url: str, clients: int, seed: int) -> dict[str, float]:
    """One measurement."""
    result = put(
        contestant,
        url,
        clients=clients,
        requests=max(6, 2 * clients),
        prompt_tokens=100,
        max_tokens=NUM_TOKENS,
        seed=seed,
    )
    first = [each.first_token for each in result.measurements if each.first_token is not None]
    gaps = [each.time_per_token for each in result.measurements if each.time_per_token is not None]
    return {
        "tokens_per_second": result.output_tokens_per_second,
        "prompt_tokens": statistics.mean(each.prompt_tokens for each in result.measurements),
        "first_token": statistics.median(first),
        "time_per_token": statistics.median(gaps),
    }


def compare(contestants: Sequence[Contestant], clients: int, repetitions: int) -> dict[str, list[dict[str, float]]]:
    """Bursts of every contestant at one number of clients, in turn; the same prompts for all in a repetition."""
    bursts: dict[str, list[dict[str, float]]] = {each.name: [] for each in contestants}
    with standing(contestants, clients) as urls:
        for repetition in range(repetitions):
            for each in contestants:

                def attempt(number: int, each: Contestant = each, repetition: int = repetition) -> dict[str, float]:
                    return burst(each, urls[each.name], clients, 1000 * clients + 100 * number + repetition)

                figure, others = quietly(attempt)
                bursts[each.name].append({**figure, "others_cores": others})
                print(
                    f"{clients:3} clients  {each.name:28} {figure['tokens_per_second']:7.1f} tokens/s"
                    f"   first {figure['first_token'] * 1000:6.0f} ms"
                    f"   per token {figure['time_per_token'] * 1000:5.1f} ms"
                    f"   others {others:.2f} cores",
                    flush=True,
                )
    return bursts


def conclude(
    name: str, contestants: Sequence[Contestant], found: Mapping[int, Mapping[str, Sequence[Mapping[str, float]]]]
) -> list[Figures]:
    """Throughput with its verdicts, and times to the first token."""
    flags = {each.name: each.shown_flags(max(found)) for each in contestants}

    def values(quantity: str) -> dict[str, dict[str, list[float]]]:
        return {
            "1 client" if clients == 1 else f"{clients} clients": {
                contestant: [each[quantity] for each in bursts] for contestant, bursts in by_name.items()
            }
            for clients, by_name in found.items()
        }

    speeds = values("tokens_per_second")
    throughput = Figures(
        name=name,
        title="Output tokens per second, 100-word prompts and 64 tokens",
        unit="tokens/s",
        values=speeds,
        verdicts=verdicts(contestants, dict(zip(found, speeds.values(), strict=True))),
        flags=flags,
        details=found,
    )
    waits = Figures(
        name=f"{name}-first-token",
        title="Time to first token in the same runs",
        unit="s",
        values=values("first_token"),
        flags=flags,
    )
    return [throughput, waits]


def verdicts(contestants: Sequence[Contestant], speeds: Mapping[int, Mapping[str, Sequence[float]]]) -> list[Verdict]:
    """Ours over the best of llama.cpp's files, for every number of clients."""
    ratios = []
    for clients, by_name in speeds.items():
        medians = {name: statistics.median(each) for name, each in by_name.items()}
        if any(each.name.startswith("llama.cpp") for each in contestants):
            for each in contestants:
                if each.ours:
                    goal, floor = GOALS.get(each.name, {}).get(clients, (None, None))
                    what = f"{each.name} / llama.cpp's best, {clients} client{'s' * (clients > 1)}"
                    ratios.append(Verdict(what, medians[each.name] / best(medians, contestants), goal, floor=floor))
    return ratios


def main() -> None:
    arguments = parser(__doc__, repetitions=2)
    arguments.add_argument("--clients", default="1,4,16,48", help="numbers of clients, with commas")
    arguments.add_argument("--tune", action="store_true", help="compare llama.cpp's flags at 16 clients")
    arguments.add_argument("--peers", action="store_true", help="OpenVINO GenAI too, which is installed for it")
    given = arguments.parse_args()
    cache = config_sources.load({}).cache
    source = resolve(None, cache).path
    if given.tune:
        file = llama_cpp.model_files(source, cache / "benchmarks")["Q4_0"]
        levels, all_ = [16], [llama(name, file, cache, tuning=variant) for name, variant in VARIANTS.items()]
    else:
        levels, all_ = [int(part) for part in given.clients.split(",")], line_up()
        if given.peers:
            all_.append(openvino(source, cache))
    contestants = chosen(all_, given.only)
    for each in contestants:
        print(f"{each.name}: {each.shown_flags(levels[-1])}")
    found = {clients: compare(contestants, clients, given.repetitions) for clients in levels}
    for figures in conclude("tune" if given.tune else "peers" if given.peers else "compare", contestants, found):
        figures.conclude(given.output)


if __name__ == "__main__":
    main()
