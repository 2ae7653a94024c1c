"""What callers feel beyond throughput, Arriero and llama.cpp in one run and by turns.

    python benchmarks/scenarios.py [poisson prompt turns system intruder speculation] [--repetitions 3] [--only NAMES]

- poisson: requests at random moments (100-word prompts, 64 tokens) at 70 % of what the same server answers when 16
  clients keep it busy: time to first token, its median, 95th percentile and largest; 60 requests a repetition.
- prompt: prompts of 1,000 words and one token: prompt tokens a second, until that token came.
- turns: a conversation whose first message has 1,000 words: time to first token of the second turn over the first's,
  where that comes at once and where somebody has read the answer for a second.
- system: 16 clients that share a system prompt of 500 words, 50 words of their own each, 64 tokens: requests a second
  for the first 16 that have that system prompt ("new"), and for 32 more ("known").
- intruder: eight running streams, and a prompt of 2,000 words: the gaps between two tokens of the streams from its
  arrival to its first token (95th percentile), over their median before it came.
- speculation: one client that asks for passages of documentation to be corrected, rewritten, summarised and explained,
  Arriero with and without guesses (`--speculation`): tokens a second, and whether all answers are the same.

Everything is greedy, of fixed length, checked by `usage`, with new prompts in every repetition, and nobody speculates:
all but in `speculation`. In `turns` answers end where the model ends them, for people send back what they were shown:
with `ignore_eos` an answer goes on after tokens that have no text, and comes back as another sequence of tokens.
llama.cpp's prompt cache is off in `poisson` and `prompt`, where there is nothing to find, and as it is by default in
the others. Servers are warm: each has answered before. A measurement is taken again when other processes took more
than a tenth of a core.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import uvloop

from arriero import config_sources
from arriero.bench import words
from arriero.bench.client import Endpoint
from arriero.bench.load import Load, first_model, measure, send
from arriero.bench.measurement import Measurement
from arriero.bench.report import percentile
from contestants import Contestant, arriero, by_turns, check, line_up, put, standing
from figures import Figures, Verdict, chosen, medians, ratios, run_named
from machine import quietly
from quality import documentation

FASTEST = ("Q4_0",)
"""llama.cpp's file with most tokens a second at any number of clients (`compare.py`), where one has to do."""
CLIENTS = 16
NUM_TOKENS = 64


def flags(contestants: Sequence[Contestant], clients: int, context: int) -> dict[str, str]:
    return {each.name: each.shown_flags(clients, context) for each in contestants}


def poisson(repetitions: int, only: set[str] | None) -> Figures:
    contestants = chosen(line_up(weights=("int8",), files=FASTEST), only)
    rates: dict[str, float] = {}
    waits: dict[str, list[float]] = {each.name: [] for each in contestants}

    def at_70_percent(each: Contestant, url: str, seed: int) -> dict[str, float]:
        result = put(each, url, requests=60, rate=rates[each.name], max_tokens=NUM_TOKENS, seed=seed)
        first = [1000 * one.first_token for one in result.answered if one.first_token is not None]
        waits[each.name] += first
        return {"median": statistics.median(first), "p95": percentile(first, 95), "largest": max(first)}

    clients, context = 48, 512
    with standing(contestants, clients, context) as urls:
        for each in contestants:

            def busy(attempt: int, each: Contestant = each) -> float:
                load = {"requests": 3 * CLIENTS, "clients": CLIENTS, "max_tokens": NUM_TOKENS, "seed": 7 + attempt}
                return 3 * CLIENTS / put(each, urls[each.name], **load).seconds

            rates[each.name] = 0.7 * quietly(busy)[0]
            print(f"  {each.name:16} is asked for {rates[each.name]:.2f} requests/s", flush=True)
        values = by_turns(contestants, urls, repetitions, at_70_percent)
    verdicts = []
    for each in contestants:
        middle = statistics.median(waits[each.name])
        verdicts.append(_own(each, "p95 / median", percentile(waits[each.name], 95) / middle, 3))
        verdicts.append(Verdict(f"{each.name}, largest / median, all answered", max(waits[each.name]) / middle))
    return Figures(
        name="poisson",
        title="Time to first token, Poisson arrivals at 70 % of each server's own capacity",
        unit="ms",
        values=values,
        verdicts=verdicts,
        flags=flags(contestants, clients, context),
        details={"requests_per_second": rates, "first_tokens": waits},
    )


def prompt(repetitions: int, only: set[str] | None) -> Figures:
    contestants = chosen(line_up(), only)

    def read(each: Contestant, url: str, seed: int) -> dict[str, float]:
        result = put(each, url, requests=3, prompt_tokens=1000, max_tokens=1, seed=seed)
        speeds = [one.prompt_tokens / one.first_token for one in result.answered if one.first_token]
        return {"1,000 words": statistics.median(speeds)}

    with standing(contestants, 1, 2048) as urls:
        values = by_turns(contestants, urls, repetitions, read)
    return Figures(
        name="prompt",
        title="Prompt of 1,000 words, read by one client",
        unit="prompt tokens/s",
        values=values,
        verdicts=ratios(values, contestants, 2),
        flags=flags(contestants, 1, 2048),
    )


PAUSE = 1.0
"""Seconds in which somebody reads an answer, at least."""


def turns(repetitions: int, only: set[str] | None) -> Figures:
    contestants = chosen(line_up(files=FASTEST, prompt_cache=True), only)

    def converse(each: Contestant, url: str, seed: int) -> dict[str, float]:
        first, at_once = uvloop.run(_conversation(each, url, seed, pause=0))
        again, later = uvloop.run(_conversation(each, url, seed + 1, pause=PAUSE))
        times = {"first turn": (first + again) / 2, "second at once": at_once, f"second after {PAUSE:g} s": later}
        return {name: 1000 * each for name, each in times.items()}

    with standing(contestants, 2, 2048) as urls:
        values = by_turns(contestants, urls, repetitions, converse)
    first, *others = values
    verdicts = []
    for condition in others:
        for each in contestants:
            ratio = medians(values[condition])[each.name] / medians(values[first])[each.name]
            verdicts.append(_own(each, f"{condition} / first turn", ratio, 0.1))
    return Figures(
        name="turns",
        title="Time to first token in a conversation of 1,000 words",
        unit="ms",
        values=values,
        verdicts=verdicts,
        flags=flags(contestants, 2, 2048),
    )


async def _conversation(contestant: Contestant, url: str, seed: int, pause: float) -> tuple[float, float]:
    """Seconds to the first token of two turns, with a pause between."""
    endpoint = Endpoint(url, new_connection=True)
    body: dict[str, Any] = {
        "model": await first_model(endpoint, url),
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": f"Tell me a story with these words: {words.prompt(1000, seed, 0)}"}],
        **{name: value for name, value in contestant.extra_body.items() if name != "ignore_eos"},
    }
    first = await send(endpoint, "/chat/completions", body)
    await asyncio.sleep(pause)
    body["messages"] += [
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": f"Tell me another one, with these: {words.prompt(20, seed, 1)}"},
    ]
    second = await send(endpoint, "/chat/completions", body)
    if first.first_token is None or second.first_token is None or first.error or second.error:
        raise RuntimeError(f"{contestant.name}: {first.error or second.error or 'an answer without text'}")
    return first.first_token, second.first_token


def system(repetitions: int, only: set[str] | None) -> Figures:
    contestants = chosen(line_up(weights=("int8",), files=FASTEST, prompt_cache=True), only)

    def share(each: Contestant, url: str, seed: int) -> dict[str, float]:
        load = {
            "clients": CLIENTS,
            "prompt_tokens": 50,
            "max_tokens": NUM_TOKENS,
            "endpoint": "chat",
            "system": words.prompt(500, seed, 0),
        }
        new = put(each, url, requests=CLIENTS, seed=seed + 1, **load)
        known = put(each, url, requests=2 * CLIENTS, seed=seed + 2, **load)
        return {"new": CLIENTS / new.seconds, "known": 2 * CLIENTS / known.seconds}

    with standing(contestants, CLIENTS, 1024) as urls:
        values = by_turns(contestants, urls, repetitions, share)
    return Figures(
        name="system",
        title="16 clients that share a system prompt of 500 words",
        unit="requests/s",
        values=values,
        verdicts=ratios(values, contestants, 1.5),
        flags=flags(contestants, CLIENTS, 1024),
    )


STREAMS = 8
SETTLED = 4.0
"""Seconds after which all streams run evenly."""
LENGTH = 3.5
"""How many times that long they run if nobody comes among them: while a prompt is read they run longer."""


def intruder(repetitions: int, only: set[str] | None) -> Figures:
    contestants = chosen(line_up(weights=("int8",), files=FASTEST, prompt_cache=True), only)

    def intrude(each: Contestant, url: str, seed: int) -> dict[str, float]:
        return uvloop.run(_intrusion(each, url, seed))

    with standing(contestants, STREAMS + 1, 2560) as urls:
        values = by_turns(contestants, urls, repetitions, intrude)
    before, after = medians(values["median before"]), medians(values["p95 meanwhile"])
    return Figures(
        name="intruder",
        title="Gaps between the tokens of 8 streams while a prompt of 2,000 words is read",
        unit="ms",
        values=values,
        verdicts=[
            _own(each, "p95 meanwhile / median before", after[each.name] / before[each.name], 3) for each in contestants
        ],
        flags=flags(contestants, STREAMS + 1, 2560),
    )


async def _intrusion(contestant: Contestant, url: str, seed: int) -> dict[str, float]:
    """Milliseconds between tokens of the streams, and until the first token of the prompt that came among them."""
    body = {"url": url, "endpoint": "completions", "extra_body": contestant.extra_body, "new_connection": True}
    long = Load(requests=1, prompt_tokens=2000, max_tokens=8, seed=seed + 1, **body)
    load = Load(clients=STREAMS, requests=STREAMS, prompt_tokens=100, max_tokens=NUM_TOKENS, seed=seed, **body)
    calm = await measure(load)
    check(contestant, calm)
    usual = statistics.median(gap for each in calm.measurements for gap in each.gaps)
    load = replace(load, max_tokens=int(LENGTH * SETTLED / usual), seed=seed + 2)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(measure(load))
        await asyncio.sleep(SETTLED)
        arrived = time.perf_counter()
        late = tasks.create_task(measure(long))
    streams = running.result()
    check(contestant, streams)
    check(contestant, late.result())
    wait = late.result().measurements[0].first_token
    gaps = [gap for each in streams.measurements for gap in _gaps(each)]
    started = max(each.due + (each.first_token or 0) for each in streams.measurements)
    ended = min(each.due + each.latency for each in streams.measurements)
    if wait is None or started > arrived - 1 or ended < arrived + wait:
        raise RuntimeError(f"{contestant.name}: the streams did not run all the while that the prompt was read")
    before = [1000 * (end - begin) for begin, end in gaps if started < begin and end < arrived]
    meanwhile = [1000 * (end - begin) for begin, end in gaps if begin < arrived + wait and end > arrived]
    return {
        "median before": statistics.median(before),
        "p95 meanwhile": percentile(meanwhile, 95),
        "largest meanwhile": max(meanwhile),
        "first token of the prompt": 1000 * wait,
    }


def _gaps(measurement: Measurement) -> list[tuple[float, float]]:
    """When each gap began and ended."""
    begin = measurement.due + (measurement.first_token or 0)
    spans = []
    for gap in measurement.gaps:
        spans.append((begin, begin + gap))
        begin += gap
    return spans


ASKS = (
    "Correct the grammar of this text: {}",
    "Rewrite this text for beginners: {}",
    "Summarise this text: {}",
    "Explain this text, quoting it: {}",
)
PASSAGES = 2
"""Of prose, for each way of asking."""
PASSAGE_WORDS = 150
GUESSES = (3, 7)


def speculation(repetitions: int, only: set[str] | None) -> Figures:
    contestants = [arriero("int8"), *(arriero("int8", guesses=guesses) for guesses in GUESSES)]
    contestants = chosen([*contestants, *line_up(weights=(), files=FASTEST)], only)
    prompts = _passages()
    said: dict[str, list[str]] = {}

    def ask(each: Contestant, url: str, seed: int) -> dict[str, float]:
        measurements = uvloop.run(_answers(each, url, prompts))
        said[each.name] = [one.text for one in measurements]
        writing = sum(one.latency - (one.first_token or 0) for one in measurements)
        return {"1 client": sum(one.output_tokens - 1 for one in measurements) / writing}

    with standing(contestants, 1, 1024) as urls:
        values = by_turns(contestants, urls, repetitions, ask)
    ours = [each.name for each in contestants if each.ours]
    if any(said[name] != said[ours[0]] for name in ours):
        raise RuntimeError("with guesses Arriero answers something else")
    speeds = medians(values["1 client"])
    return Figures(
        name="speculation",
        title="Answers about passages of documentation, the prompts' reading left out",
        unit="tokens/s",
        values=values,
        verdicts=[Verdict(f"{name} / without guesses", speeds[name] / speeds[ours[0]]) for name in ours[1:]],
        flags=flags(contestants, 1, 1024),
        details={"answers": said},
    )


def _passages() -> list[str]:
    """Pieces of Django's documentation, evenly spread, in every way of asking."""
    downloads = config_sources.load({}).cache / "benchmarks"
    downloads.mkdir(parents=True, exist_ok=True)
    prose = documentation(downloads).split()
    starts = range(0, len(prose), len(prose) // (PASSAGES * len(ASKS)))[: PASSAGES * len(ASKS)]
    passages = [" ".join(prose[start : start + PASSAGE_WORDS]) for start in starts]
    return [ASKS[index % len(ASKS)].format(passage) for index, passage in enumerate(passages)]


async def _answers(contestant: Contestant, url: str, prompts: Sequence[str]) -> list[Measurement]:
    """To one prompt after the other, up to the model's own end."""
    endpoint = Endpoint(url, new_connection=True)
    body = {"model": await first_model(endpoint, url), "max_tokens": 96, "temperature": 0, "stream": True}
    body |= {"stream_options": {"include_usage": True}}
    measurements = []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        measurements.append(await send(endpoint, "/chat/completions", {**body, "messages": messages}))
    if errors := [each.error for each in measurements if each.error]:
        raise RuntimeError(f"{contestant.name}: {errors[0]}")
    return measurements


def _own(contestant: Contestant, what: str, value: float, most: float) -> Verdict:
    """A ratio of a contestant's own figures, of which ours has a goal."""
    return Verdict(f"{contestant.name}, {what}", value, most if contestant.ours else None, at_least=False)


SCENARIOS = {each.__name__: each for each in (poisson, prompt, turns, system, intruder, speculation)}


if __name__ == "__main__":
    run_named(SCENARIOS, __doc__, repetitions=3)
