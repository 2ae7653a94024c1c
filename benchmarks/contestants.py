"""Who is compared: servers with their flags, ours and llama.cpp's, each started by one call."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
from arriero import config_sources
from arriero.bench.load import Load, Result, run
from arriero.models.sources.resolve import resolve
from machine import THREADS, quietly, serve_arriero

LLAMA_FILES = ("Q4_0", "Q8_0", "Q4_1")
FLASH: Mapping[str, Any] = {"flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_ENABLED"}
"""llama.cpp's flags beyond threads, slots and context: the best of what `compare.py --tune` tries."""
CONTEXT = 512
"""Tokens that llama.cpp sets aside for a client, unless a scenario needs more; Arriero shares its memory out itself."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server with its flags."""

    name: str
    flags: Callable[[int, int], Sequence[str] | Mapping[str, Any]]
    """For a number of clients, and the tokens that each may hold."""
    serve: Callable[[Any], AbstractContextManager[str]]
    """Run it with those flags; gives its URL."""
    extra_body: Mapping[str, Any]
    """Goes into every request."""
    generate: Callable[[Load], Result] = run
    """Puts a load on it, over HTTP or otherwise."""

    @property
    def ours(self) -> bool:
        """Whether it is Arriero."""
        return self.name.startswith("Arriero")

    def shown_flags(self, clients: int, context: int = CONTEXT) -> str:
        """Its flags as people write them."""
        flags = self.flags(clients, context)
        return json.dumps(flags) if isinstance(flags, Mapping) else shlex.join(flags)


def arriero(weights: str, *, model: Path | None = None, label: str = "", guesses: int = 0) -> Contestant:
    """Arriero with default settings but the format and guesses; without a `model`, the catalog's default."""
    options = ["--port", "0", "--weights", weights, "--log-level", "warning"]
    options += ["--speculation", str(guesses)]
    command = ["serve", *([] if model is None else [str(model)]), *options]
    return Contestant(
        label or f"Arriero {weights}" + (f", {guesses} guesses" if guesses else ""),
        lambda clients, context: command,
        serve_arriero,
        {"ignore_eos": True},
    )


def llama(
    name: str, file: Path, cache: Path, *, tuning: Mapping[str, Any] = FLASH, prompt_cache: bool = False
) -> Contestant:
    """llama.cpp's server with one file; with `prompt_cache` it reuses what it read, as it does by default."""

    def flags(clients: int, context: int) -> dict[str, Any]:
        return {
            "n_parallel": clients,
            "n_ctx": context * clients,
            "cont_batching": True,
            "cpuparams.n_threads": THREADS,
            "cpuparams_batch.n_threads": THREADS,
            "verbosity": 0,
            **({} if prompt_cache else {"cache_ram_mib": 0}),
            **tuning,
        }

    def serve(flags: Mapping[str, Any]) -> AbstractContextManager[str]:
        return llama_cpp.server(cache / "llama.cpp", file, dict(flags))

    return Contestant(name, flags, serve, {"ignore_eos": True, "cache_prompt": prompt_cache})


def line_up(
    *, weights: Iterable[str] = ("int8", "int4"), files: Iterable[str] = LLAMA_FILES, prompt_cache: bool = False
) -> list[Contestant]:
    """Arriero in several formats and llama.cpp with several files, all of the catalog's default model."""
    cache = config_sources.load({}).cache
    paths = llama_cpp.model_files(resolve(None, cache).path, cache / "benchmarks")
    ours = [arriero(each) for each in weights]
    return ours + [llama(f"llama.cpp {kind}", paths[kind], cache, prompt_cache=prompt_cache) for kind in files]


@contextmanager
def standing(contestants: Iterable[Contestant], clients: int, context: int = CONTEXT) -> Iterator[dict[str, str]]:
    """All servers at once, each having answered one request; gives their URLs by name."""
    with ExitStack() as stack:
        urls = {}
        for each in contestants:
            urls[each.name] = stack.enter_context(each.serve(each.flags(clients, context)))
            put(each, urls[each.name], requests=1, max_tokens=8, seed=-1)
        yield urls


def put(contestant: Contestant, url: str, *, max_tokens: int, requests: int, **load: Any) -> Result:
    """Put a load on a contestant; raises `RuntimeError` unless every answer had all its tokens, by its own count.

    A new connection for each request, because llama.cpp drops idle ones.
    """
    load = {"endpoint": "completions", "extra_body": contestant.extra_body, "new_connection": True, **load}
    result = contestant.generate(Load(url=url, requests=requests, max_tokens=max_tokens, **load))
    check(contestant, result)
    return result


def check(contestant: Contestant, result: Result) -> None:
    """Raise `RuntimeError` unless every answer had all the tokens that were asked for."""
    wanted = result.load.max_tokens
    whole = [each for each in result.answered if each.from_usage and each.output_tokens == wanted]
    if len(whole) != len(result.measurements):
        counts = sorted({each.output_tokens for each in result.answered})
        raise RuntimeError(
            f"{contestant.name}: {len(whole)} of {len(result.measurements)} answers with {wanted} tokens; "
            f"others {counts}; {result.errors}"
        )


def by_turns(
    contestants: Sequence[Contestant],
    urls: Mapping[str, str],
    repetitions: int,
    measure: Callable[[Contestant, str, int], Mapping[str, float]],
) -> dict[str, dict[str, list[float]]]:
    """One quiet measurement of each contestant after the other, as often as asked; `measure` gets a seed.

    Returns: values by condition and contestant, a value a repetition.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for repetition in range(repetitions):
        for each in contestants:

            def attempt(number: int, each: Contestant = each, repetition: int = repetition) -> Mapping[str, float]:
                return measure(each, urls[each.name], 1000 * (repetition + 1) + 100 * number)

            found, others = quietly(attempt)
            shown = "   ".join(f"{condition} {value:.4g}" for condition, value in found.items())
            print(f"  {each.name:16} {shown}   (others {others:.2f} cores)", flush=True)
            for condition, value in found.items():
                values.setdefault(condition, {}).setdefault(each.name, []).append(value)
    return values
