"""real_model.npz: what transformers computes for SmolLM2-135M-Instruct; `make_real_model` writes it.

prompts         uint16  [sum of lengths]  104 prompts, one after the other
lengths         int32   [104]
continuations   uint16  [104, 64]         greedy, end of sequence ignored
gaps            float32 [104, 64]         best logit minus second best, at each of those tokens
logit_positions int32   [30, 2]           prompt and position of each row of `logits`
logit_columns   int32   [2000]            tokens whose logits are kept
logits          float32 [30, 2000]
full_logits_of  int32   [2]               prompts whose last position is kept whole
full_logits     float32 [2, 49152]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_suffix(".npz")
NUM_TOKENS = 64
LONG = 1000
"""Tokens from which on a prompt counts as long."""
DECISIVE = 1e-4
"""Logits closer than this are a tie as far as float32 goes: sums in another order may put them the other way round."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """A prompt, and what transformers says after it."""

    prompt: tuple[int, ...]
    tokens: list[int]
    smallest_gap: float
    """By how much the best logit led at the closest of the choices."""


@dataclass(frozen=True, slots=True)
class Logits:
    """Logits float32 [len(columns)] at one position of a prompt; `columns` are token ids."""

    position: int
    columns: NDArray[np.int32]
    values: NDArray[np.float32]


def prompts() -> list[tuple[int, ...]]:
    """All 104."""
    with np.load(FILE) as file:
        return _prompts(file)


def continuations() -> list[Continuation]:
    """All but those in which a choice between two tokens was a tie: 103."""
    with np.load(FILE) as file:
        answers = zip(_prompts(file), file["continuations"].tolist(), file["gaps"].min(axis=1).tolist(), strict=True)
        return [Continuation(*answer) for answer in answers if answer[-1] > DECISIVE]


def subset(everything: Sequence[Continuation], num_short: int, num_long: int) -> list[Continuation]:
    """Evenly spread over the kinds of prompts."""
    short = [each for each in everything if len(each.prompt) < LONG]
    long = sorted((each for each in everything if len(each.prompt) >= LONG), key=lambda each: len(each.prompt))
    return short[:: len(short) // num_short][:num_short] + long[:num_long]


def logits() -> dict[tuple[int, ...], list[Logits]]:
    """By prompt, in the order of positions: some columns at 26 positions, all at two of these."""
    with np.load(FILE) as file:
        everything = _prompts(file)
        every = np.arange(file["full_logits"].shape[1], dtype=np.int32)
        result: dict[tuple[int, ...], list[Logits]] = {}
        for (index, position), values in zip(file["logit_positions"].tolist(), file["logits"], strict=True):
            result.setdefault(everything[index], []).append(Logits(position, file["logit_columns"], values))
        for index, values in zip(file["full_logits_of"].tolist(), file["full_logits"], strict=True):
            result[everything[index]].append(Logits(len(everything[index]) - 1, every, values))
        return {prompt: sorted(found, key=lambda each: each.position) for prompt, found in result.items()}


def _prompts(file: NDArray[np.generic]) -> list[tuple[int, ...]]:
    return [tuple(part.tolist()) for part in np.split(file["prompts"], np.cumsum(file["lengths"])[:-1])]
