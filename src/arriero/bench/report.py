"""Results as a table for people and as plain data for machines."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from arriero.bench.load import Load, Result

PERCENTILES = (50, 90, 95, 99)

_HEADINGS = {
    "time_to_first_token": "first token ms",
    "time_per_output_token": "per token ms",
    "inter_token_gap": "gap ms",
    "request_latency": "request ms",
}


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` % of the values do not exceed, interpolated linearly; NaN when there are none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def data(result: Result) -> dict[str, Any]:
    """One run for machines; times in seconds, a spread without values is null."""
    load = asdict(result.load)
    load["api_key"] = None if result.load.api_key is None else "***"
    answered = result.answered
    return {
        "load": load,
        "seconds": result.seconds,
        "requests": len(result.measurements),
        "answered": len(answered),
        "errors": result.errors,
        "finish_reasons": dict(Counter(str(each.finish_reason) for each in answered)),
        "prompt_tokens": sum(each.prompt_tokens for each in answered),
        "output_tokens": result.output_tokens,
        "output_tokens_from_usage": all(each.from_usage for each in answered),
        "output_tokens_per_request": _spread([each.output_tokens for each in answered]),
        "requests_per_second": len(answered) / result.seconds,
        "output_tokens_per_second": result.output_tokens_per_second,
        "generator_cores": result.generator_seconds / result.seconds,
        **{name: _spread(values) for name, values in _times(result).items()},
    }


def shape(load: Load) -> str:
    """A load in two words."""
    if load.rate is not None:
        return f"{load.rate:g} requests/s"
    return "1 client" if load.clients == 1 else f"{load.clients} clients"


def table(results: Sequence[Result]) -> Group:
    """Runs for people, one line each, and below it what deserves a remark."""
    view = Table(title=_title(results[0]), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in ("load", "answered", "tokens/s", *_HEADINGS.values()):
        view.add_column(heading, justify="right", no_wrap=heading == "load")
    for result in results:
        times = _times(result)
        spreads = (f"{_milliseconds(times[name], 50)} {_milliseconds(times[name], 95):>6}" for name in _HEADINGS)
        view.add_row(
            shape(result.load),
            f"{len(result.answered)}/{len(result.measurements)}",
            f"{result.output_tokens_per_second:.1f}",
            *spreads,
        )
    return Group(view, *(Text(remark) for result in results for remark in _remarks(result)))


def _times(result: Result) -> dict[str, list[float]]:
    answered = result.answered
    return {
        "time_to_first_token": [each.first_token for each in answered if each.first_token is not None],
        "time_per_output_token": [each.time_per_token for each in answered if each.time_per_token is not None],
        "inter_token_gap": [gap for each in answered for gap in each.gaps],
        "request_latency": [each.latency for each in answered],
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    percentiles = {f"p{percent}": percentile(values, percent) for percent in PERCENTILES}
    return {"mean": sum(values) / len(values), **percentiles, "min": min(values), "max": max(values)}


def _milliseconds(values: Sequence[float], percent: float) -> str:
    if not values:
        return "-"
    milliseconds = percentile(values, percent) * 1000
    return f"{milliseconds:.1f}" if milliseconds < 1000 else f"{milliseconds:.0f}"


def _title(result: Result) -> str:
    load = result.load
    how = "streamed" if load.stream else "not streamed"
    shared = f" after {len(load.system.split())} that all share" if load.system else ""
    work = f"prompts of {load.prompt_tokens} words{shared}, at most {load.max_tokens} tokens, {load.endpoint}, {how}"
    return f"{load.model} at {load.url}: {work}, seed {load.seed} (times: p50 p95)"


def _remarks(result: Result) -> list[str]:
    remarks = [f"{shape(result.load)}: {count} failed: {kind}" for kind, count in sorted(result.errors.items())]
    if not all(each.from_usage for each in result.answered):
        remarks.append(f"{shape(result.load)}: the server sent no usage, tokens are counted by pieces of text")
    if (cores := result.generator_seconds / result.seconds) > 0.5:
        remarks.append(f"{shape(result.load)}: the generator took {cores:.0%} of a core, the figures may be its own")
    return remarks


def machine() -> dict[str, Any]:
    """What the figures were taken with."""
    return {"python": platform.python_version(), "system": platform.platform(), "processor": platform.processor()}
