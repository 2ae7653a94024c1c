"""`arriero bench --self`: what this machine makes of a model, and what would be chosen for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from arriero import config_sources
from arriero.cli import log

if TYPE_CHECKING:
    from arriero.app.survey import Setting, Survey
    from arriero.pool import ServedModel


def survey(model: str | None, json_file: str | None) -> None:
    """Load the model as `serve` would, from the same variables, measure it and show what was found."""
    settings = config_sources.load({} if model is None else {"model": model})
    log.set_up("warning")
    from arriero.app import load
    from arriero.app.survey import choices
    from arriero.cli.progress import Bars

    with Bars() as bars:
        served = load(settings, on_download=bars.download, on_convert=bars.convert)
    found, chosen = asyncio.run(_measure(served, lambda: choices(settings, served)))
    if json_file is not None:
        figures = {"model": asdict(served.card), "choices": [asdict(each) for each in chosen], "survey": asdict(found)}
        text = json.dumps(figures, indent=2)
        if json_file == "-":
            print(text)
            return
        Path(json_file).write_text(text + "\n")
    print("\n".join(_lines(served, found, chosen)))


async def _measure(served: ServedModel, choose: Callable[[], list[Setting]]) -> tuple[Survey, list[Setting]]:
    from arriero.app.survey import survey as measure

    await served.engine.start()
    try:
        return await measure(served), choose()
    finally:
        await served.engine.close()


def _lines(served: ServedModel, found: Survey, chosen: Sequence[Setting]) -> list[str]:
    """What was found, for people."""
    machine = (
        f"{found.cores} core{'s' * (found.cores > 1)}, {found.free_memory / 1e9:.1f} GB free, "
        f"{found.bandwidth / 1e9:.1f} GB/s from memory"
    )
    lines = [f"{served.name} on this machine ({machine})", "", "Chosen for it:"]
    lines += [f"  {each.name:13} {each.value:9} {each.reason}" for each in chosen]
    lines += ["", "Measured, without HTTP, at temperature 1:"]
    lines.append(f"  {'reading':13} {found.prefill:,.0f} tokens/s, a prompt of {found.prompt_tokens:,} tokens")
    for rows, speed in found.decode.items():
        what = "1 answer" if rows == 1 else f"{rows} answers at once"
        lines.append(f"  {'writing':13} {speed:,.1f} tokens/s, {what}")
    if found.bound is not None:
        lines.append(
            f"  {'bound':13} {found.bound:,.0f} tokens/s for 1 answer, a token a step: each takes "
            f"{found.weight_bytes / 1e6:,.0f} MB of weights from memory; right guesses come on top"
        )
    return lines
