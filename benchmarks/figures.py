"""What a benchmark found: printed as a table with ratios, and kept as JSON with a plot beside it."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp
import plots
from contestants import Contestant
from machine import machine

DIRECTORY = Path(__file__).with_name("results")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A ratio and what it ought to be."""

    what: str
    value: float
    goal: float | None = None
    """None: it is for comparison only."""
    at_least: bool = True
    floor: float | None = None
    """Where the work counts as done, if that is short of the goal."""

    def __str__(self) -> str:
        if self.goal is None:
            return f"{self.what}: {self.value:.2f}"
        met = self.value >= self.goal if self.at_least else self.value <= self.goal
        which = "at least" if self.at_least else "at most"
        short = "" if self.floor is None else f", {self.floor:g} will do"
        word = "met" if met else "passable" if self.floor is not None and self.value >= self.floor else "missed"
        return f"{self.what}: {self.value:.2f} (goal: {which} {self.goal:g}{short}: {word})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One quantity of every contestant under several conditions, in every repetition."""

    name: str
    """Of its files."""
    title: str
    unit: str
    values: Mapping[str, Mapping[str, Sequence[float]]]
    """Condition, contestant, one value a repetition."""
    verdicts: Sequence[Verdict] = ()
    flags: Mapping[str, str] = field(default_factory=dict)
    """Of each contestant."""
    details: Any = None
    """More that was seen, for whoever reads the JSON."""

    def median(self, condition: str, contestant: str) -> float:
        """Of the repetitions."""
        return statistics.median(self.values[condition][contestant])

    def table(self) -> str:
        """Medians in Markdown, a row each contestant."""
        contestants = list(dict.fromkeys(name for each in self.values.values() for name in each))
        lines = [f"| {self.unit} | {' | '.join(self.values)} |", "|---" * (len(self.values) + 1) + "|"]
        for name in contestants:
            cells = (plots.text(self.median(each, name)) if name in self.values[each] else "" for each in self.values)
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def conclude(self, directory: Path) -> None:
        """Print the table and the verdicts, and write `NAME.json` and `NAME.png`."""
        verdicts = [str(each) for each in self.verdicts]
        print("\n" + "\n".join([f"{self.title}:", "", self.table(), "", *verdicts]), flush=True)
        directory.mkdir(parents=True, exist_ok=True)
        about = machine(**{"llama.cpp": llama_cpp.build()})
        text = json.dumps({"machine": about, **asdict(self)}, indent=1)
        (directory / f"{self.name}.json").write_text(text + "\n")
        note = f"{about['processor']}, {about['cores']} cores; Arriero {about['arriero']}, {about['llama.cpp']}"
        plots.bars(directory / f"{self.name}.png", self.title, self.unit, self.values, [*verdicts, note])


def best(medians: Mapping[str, float], contestants: Sequence[Contestant], *, least: bool = False) -> float:
    """The best of what llama.cpp has with any of its files."""
    theirs = [medians[each.name] for each in contestants if each.name.startswith("llama.cpp")]
    return min(theirs) if least else max(theirs)


def parser(description: str | None, repetitions: int) -> argparse.ArgumentParser:
    """The arguments that every script takes."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--repetitions", type=int, default=repetitions, help=f"turns of each side (default {repetitions})"
    )
    made.add_argument("--only", type=lambda text: set(text.split(",")), help="contestants, by name, with commas")
    made.add_argument("--output", type=Path, default=DIRECTORY, help="directory of the figures and plots")
    return made


def chosen(contestants: Sequence[Contestant], only: set[str] | None) -> list[Contestant]:
    """Those that `--only` names; all of them without it. Ends the program where it names somebody else."""
    names = {each.name for each in contestants}
    if only is not None and not only <= names:
        raise SystemExit(f"--only takes some of: {', '.join(sorted(names))}")
    return [each for each in contestants if only is None or each.name in only]


def medians(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(each) for name, each in values.items()}


def ratios(
    values: Mapping[str, Mapping[str, Sequence[float]]], contestants: Sequence[Contestant], goal: float
) -> list[Verdict]:
    """Ours over the best of llama.cpp's files, for every condition."""
    if not any(each.name.startswith("llama.cpp") for each in contestants):
        return []
    found = []
    for condition, by_name in values.items():
        middle = medians(by_name)
        top = best(middle, contestants)
        for each in contestants:
            if each.ours:
                found.append(Verdict(f"{each.name} / llama.cpp's best, {condition}", middle[each.name] / top, goal))
    return found


def run_named(
    scenarios: Mapping[str, Callable[[int, set[str] | None], Figures]], description: str | None, repetitions: int
) -> None:
    """The command line of a script with several scenarios: those that are named, or all."""
    arguments = parser(description, repetitions)
    arguments.add_argument("scenarios", nargs="*", metavar="scenario")
    given = arguments.parse_args()
    if unknown := set(given.scenarios) - scenarios.keys():
        arguments.error(f"no scenario: {', '.join(unknown)}; there are {', '.join(scenarios)}")
    for name in given.scenarios or scenarios:
        started = time.monotonic()
        print(f"\n{name}", flush=True)
        scenarios[name](given.repetitions, given.only).conclude(given.output)
        print(f"({time.monotonic() - started:.0f} s)", flush=True)
