"""What passing on costs: an upstream entry in front of a scripted server, one worker each; LiteLLM's proxy by turns.

    python benchmarks/gateway.py [--repetitions 3] [--clients 32] [--seconds 4] [--litellm PROGRAM] [--measure WHAT]

The scripted server computes nothing. It, whoever is in front of it and the load generator share the machine.
The requests are those of `api_layer.py`: answers of 16 tokens in one piece, and streams of 256 tokens, whose `data:`
lines are counted. Then 50 requests a second at random moments: how much longer their median
answer takes than with nobody between, for Arriero and for LiteLLM. `--measure` takes some of requests, events and
milliseconds, with commas; LiteLLM is installed as for `api_layer.py`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvloop

from api_layer import load, options, serve_litellm
from arriero.bench.load import Load, measure
from figures import Figures, Verdict
from machine import quietly, serve_arriero

GOALS = {"requests": (800, 400), "events": (15_000, 8_000)}
"""A second: what it ought to be, and where the work counts as done."""
ADDED_MILLISECONDS = 3.0
MEASURED = (*GOALS, "milliseconds")
RATE = 50.0


@contextmanager
def serve_gateway(upstream: str) -> Iterator[str]:
    """An Arriero that passes everything on; gives its URL."""
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "arriero.toml"
        config.write_text(f'[[models]]\nname = "scripted"\nupstream = "{upstream}"\n')
        with serve_arriero(["serve", "--config", str(config), "--port", "0", "--log-level", "warning"]) as url:
            yield url


def median_milliseconds(url: str, seconds: float, seed: int) -> float:
    """Of short answers in one piece, asked for at random moments."""
    asked = Load(
        url=url,
        model="scripted",
        rate=RATE,
        duration=seconds,
        max_tokens=16,
        prompt_tokens=20,
        stream=False,
        seed=seed,
    )
    result = uvloop.run(measure(asked))
    return 1000 * statistics.median(each.latency for each in result.answered)


def warm(url: str) -> None:
    """Have a first answer, which takes some proxies long."""
    body = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4})
    request = urllib.request.Request(
        f"{url}/chat/completions", body.encode(), {"content-type": "application/json", "authorization": "Bearer none"}
    )
    urllib.request.urlopen(request, timeout=60).read()


def main() -> None:
    arguments = options(__doc__)
    arguments.add_argument("--measure", default=",".join(MEASURED), help="some of them, with commas")
    given = arguments.parse_args()
    values: dict[str, dict[str, list[float]]] = {what: {} for what in given.measure.split(",")}
    if unknown := values.keys() - set(MEASURED):
        arguments.error(f"nothing is measured in {', '.join(sorted(unknown))}, but in {', '.join(MEASURED)}")
    with ExitStack() as running:
        behind = running.enter_context(
            serve_arriero(["serve", "--engine", "scripted", "--port", "0", "--log-level", "warning"])
        )
        urls = {"nobody between": behind, "Arriero": running.enter_context(serve_gateway(behind))}
        if given.litellm:
            urls["LiteLLM"] = running.enter_context(serve_litellm(given.litellm, behind))
        for url in urls.values():
            warm(url)
        for repetition in range(given.repetitions):
            for what in values:
                for name, url in urls.items():

                    def once(_: int, what: str = what, url: str = url, seed: int = repetition) -> float:
                        if what == "milliseconds":
                            return median_milliseconds(url, given.seconds, seed)
                        return uvloop.run(load(what, url, given.clients, given.seconds))[what]

                    found, others = quietly(once)
                    print(f"{name}: {found:.4g} {what}, others took {others:.2f} cores", flush=True)
                    values[what].setdefault(name, []).append(found)
    for figures in figures_of(values, given.clients):
        figures.conclude(given.output)


def figures_of(values: dict[str, dict[str, list[float]]], clients: int) -> Iterator[Figures]:
    for what in filter(values.__contains__, GOALS):
        goal, floor = GOALS[what]
        ours = statistics.median(values[what]["Arriero"])
        verdicts = [Verdict(f"Arriero, {what} a second", ours, goal, floor=floor)]
        if "LiteLLM" in values[what]:
            verdicts.append(Verdict("Arriero / LiteLLM's proxy", ours / statistics.median(values[what]["LiteLLM"])))
        yield Figures(
            name=f"gateway_{what}",
            title=f"Passing on: {what} a second, {clients} clients",
            unit=f"{what}/s",
            values={f"chat completions, {'streamed' if what == 'events' else 'in one piece'}": values[what]},
            verdicts=verdicts,
        )
    if "milliseconds" in values:
        yield latency_of(values["milliseconds"])


def latency_of(values: dict[str, list[float]]) -> Figures:
    """What each adds to the median of nobody's, each compared within its turn."""
    added = {
        name: statistics.median(own - direct for own, direct in zip(each, values["nobody between"], strict=True))
        for name, each in values.items()
    }
    verdicts = [Verdict("Arriero, milliseconds added", added["Arriero"], ADDED_MILLISECONDS, at_least=False)]
    if "LiteLLM" in added:
        verdicts.append(Verdict("LiteLLM's proxy, milliseconds added", added["LiteLLM"]))
        verdicts.append(Verdict("LiteLLM's proxy / Arriero, of these", added["LiteLLM"] / added["Arriero"]))
    return Figures(
        name="gateway_latency",
        title=f"Passing on: median time of an answer, {RATE:g} requests a second",
        unit="ms",
        values={"short answers in one piece": values},
        verdicts=verdicts,
    )


if __name__ == "__main__":
    main()
