"""Bars for every benchmark in one style; needs the `benchmarks` extra, and no display."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

COLOURS = {
    "Arriero int8": "#b3541e",
    "Arriero int4": "#e3a45f",
    "llama.cpp Q4_0": "#1f4e79",
    "llama.cpp Q8_0": "#5b8fc0",
    "llama.cpp Q4_1": "#a9c8e4",
}
LIGHT = ("Arriero int4", "llama.cpp Q4_1")
"""On these, dark letters are readable."""
OTHERS = ("#5f7f4f", "#93ab7f", "#7a6a8f", "#888888")
"""For contestants without a colour of their own, in the order in which they come."""


def bars(
    path: Path, title: str, unit: str, values: Mapping[str, Mapping[str, Sequence[float]]], notes: Sequence[str]
) -> None:
    """A group of bars for every condition, one bar a contestant at its median, a dot a repetition; written as PNG."""
    contestants = list(dict.fromkeys(name for each in values.values() for name in each))
    others = [name for name in contestants if name not in COLOURS]
    colours = COLOURS | {name: OTHERS[number % len(OTHERS)] for number, name in enumerate(others)}
    figure = Figure(
        figsize=(min(11.0, max(6.4, 1.6 + 0.5 * len(values) * (len(contestants) + 1))), 5.0), layout="constrained"
    )
    axes = figure.add_subplot()
    most = max(value for each in values.values() for repetitions in each.values() for value in repetitions)
    width = 0.84 / len(contestants)
    for number, name in enumerate(contestants):
        places = [group + (number - (len(contestants) - 1) / 2) * width for group in range(len(values))]
        shown = [(place, each[name]) for place, each in zip(places, values.values(), strict=True) if name in each]
        heights = [statistics.median(repetitions) for _, repetitions in shown]
        axes.bar([place for place, _ in shown], heights, 0.94 * width, label=name, color=colours[name])
        for (place, _), height in zip(shown, heights, strict=True):
            low = height < 0.07 * most
            colour = "#222222" if low or name in LIGHT else "white"
            axes.annotate(
                text(height),
                (place, height if low else 0),
                (0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=colour,
            )
        dots = [(place, value) for place, repetitions in shown for value in repetitions if len(repetitions) > 1]
        axes.scatter(
            *zip(*dots, strict=True) if dots else ((), ()),
            s=9,
            color="#222222",
            edgecolors="white",
            linewidths=0.4,
            zorder=3,
        )
    axes.set_xticks(range(len(values)), list(values))
    axes.set_ylabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(y=0.1)
    legend = {"ncols": min(5, len(contestants)), "frameon": False, "fontsize": 8}
    figure.legend(loc="outside upper left", title=title, title_fontsize=11, alignment="left", **legend)
    figure.supxlabel("\n".join(notes), fontsize=8, color="#555555", x=0.01, ha="left")
    figure.savefig(path, dpi=140)


def text(value: float) -> str:
    """Three digits are enough to read."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
