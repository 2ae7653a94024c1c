"""What this machine makes of a model: a few seconds of measuring through the engine, without HTTP."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from arriero.config import Settings
from arriero.core import Engine, EngineStats, Event, GenerationRequest, Sampling, Token
from arriero.errors import ConfigError
from arriero.machine import available_memory, physical_cores
from arriero.pool import ServedModel

ROWS = (1, 4, 16)
PROMPT, ANSWER = 32, 512
"""Tokens of those whose writing is measured, at most."""
SECONDS = 4.0
"""For each number of rows."""
SHORT, LONG = 128, 1024
"""Tokens of the prompts whose reading is measured."""
PATIENCE = 10.0
"""Seconds that the long one may take; else it is shortened."""
_BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int4": 5}
"""Of a weight, the scales of int4's blocks included."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What was chosen, and in one sentence why."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Speeds of a model on this machine."""

    cores: int
    free_memory: int
    """Bytes, beside the model."""
    bandwidth: float
    """Bytes a second that all cores read from memory together."""
    prompt_tokens: int
    """Of the prompt that was read."""
    prefill: float
    """Prompt tokens a second, one prompt at a time."""
    decode: dict[int, float]
    """Tokens a second of all answers together, by how many are written at once; no more than there are slots."""
    weight_bytes: int
    """That a step reads, roughly; 0: unknown."""

    @property
    def bound(self) -> float | None:
        """Tokens a second of one answer that memory allows where each step, which takes all weights, writes one.

        None: unknown. Tokens that were guessed and accepted come on top.
        """
        return self.bandwidth / self.weight_bytes if self.weight_bytes else None


async def survey(model: ServedModel) -> Survey:
    """Measure a model whose engine has started and is otherwise idle; takes about 20 seconds.

    Raises `ConfigError` for one that writes no text.
    """
    if "completion" not in model.card.tasks:
        raise ConfigError(f"{model.name} writes no text; --self measures models that do")
    engine = model.engine
    stats = engine.stats()
    room = min(engine.source_context or engine.context, stats.token_budget) - 2
    prefill = await _prefill(engine, _prompt(model, min(SHORT, room)))
    length = min(LONG, room, max(SHORT, int(prefill * PATIENCE)))
    if length > SHORT:
        prefill = await _prefill(engine, _prompt(model, length))
    decode = {rows: await _decode(model, rows, stats) for rows in ROWS if rows <= stats.num_slots}
    return Survey(
        cores=physical_cores(),
        free_memory=available_memory(),
        bandwidth=bandwidth(physical_cores()),
        prompt_tokens=length,
        prefill=prefill,
        decode=decode,
        weight_bytes=int(model.card.parameters * _BITS.get(model.card.weights, 0) / 8),
    )


def choices(settings: Settings, model: ServedModel) -> list[Setting]:
    """What was chosen for a model whose engine has started, where the settings leave it open."""
    card, stats = model.card, model.engine.stats()
    full = stats.num_slots * model.engine.context
    memory = (
        "All slots may be full."
        if stats.token_budget >= full
        else f"Half of the memory that was free beside the weights; all slots full would be {full:,}."
    )
    asked = "The settings ask for it."
    return [
        Setting("engine", card.engine, card.engine_reason or asked),
        Setting("weights", card.weights, asked if settings.weights != "auto" else _why_weights(card.weights)),
        Setting(
            "threads",
            str(settings.threads or physical_cores()),
            asked if settings.threads else "One for each physical core at hand; more get in each other's way.",
        ),
        Setting(
            "slots",
            str(stats.num_slots),
            asked if "slots" in settings.model_fields_set else "The default; they share the tokens below.",
        ),
        Setting("token budget", f"{stats.token_budget:,}", asked if settings.token_budget else memory),
    ]


def _why_weights(weights: str) -> str:
    if weights == "int8":
        return "The fastest format whose answers do not depend on what else runs."
    return "The format that this engine computes with here." if weights != "none" else "There are none."


async def _prefill(engine: Engine, prompt: tuple[int, ...]) -> float:
    """Prompt tokens a second until the first token of the answer."""
    request = GenerationRequest(id="prefill", prompts=(prompt,), max_tokens=1, sampling=Sampling(temperature=0))
    started = time.perf_counter()
    async with _asked(engine, request) as events:
        await anext(events)
    return len(prompt) / (time.perf_counter() - started)


async def _decode(model: ServedModel, rows: int, stats: EngineStats) -> float:
    """Tokens a second from when every answer has begun."""
    length = max(1, min(PROMPT, model.engine.context // 2))
    answer = min(ANSWER, model.engine.context - length, stats.token_budget // rows - length)
    request = GenerationRequest(
        id=f"decode {rows}",
        prompts=tuple(_prompt(model, length) for _ in range(rows)),
        max_tokens=max(1, answer),
        min_tokens=max(1, answer),
        # Drawn: the likeliest text repeats itself before long, and is guessed as nobody's questions are answered.
        sampling=Sampling(temperature=1),
    )
    begun: set[int] = set()
    num_tokens = num_since = 0
    sent = now = time.perf_counter()
    start: float | None = None
    async with _asked(model.engine, request) as batches:
        async for batch in batches:
            now = time.perf_counter()
            new = [event.index for event in batch if isinstance(event, Token)]
            num_tokens += len(new)
            if start is not None:
                num_since += len(new)
                if now - start > SECONDS:
                    break
            begun.update(new)
            if start is None and len(begun) == rows:
                start = now
    if start is None or not num_since:  # All of it came at once.
        return num_tokens / (now - sent)
    return num_since / (now - start)


def _asked(engine: Engine, request: GenerationRequest) -> aclosing[AsyncGenerator[list[Event], None]]:
    """The events of a request that ends with the block."""
    return aclosing(cast(AsyncGenerator[list[Event], None], engine.generate(request)))


def _prompt(model: ServedModel, length: int) -> tuple[int, ...]:
    """A prompt of that many tokens that no cache knows."""
    text = " ".join(str(random.randrange(10**6)) for _ in range(length))
    return tuple(model.tokenizer.encode(text, add_special_tokens=False, parse_special=False)[:length])


def bandwidth(threads: int, num_bytes: int = 256 * 2**20) -> float:
    """Bytes a second that so many threads read from main memory together, the best of several rounds."""
    numbers = np.ones(num_bytes // 4, np.float32)
    parts = np.array_split(numbers, threads)

    def read(part: NDArray[np.float32]) -> float:
        return float(np.dot(part, part))

    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            started = time.perf_counter()
            list(pool.map(read, parts))
            best = max(best, numbers.nbytes / (time.perf_counter() - started))
    return best
