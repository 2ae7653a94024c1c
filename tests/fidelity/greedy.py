"""Greedy continuations through the engine."""

from __future__ import annotations

from collections.abc import Sequence

from arriero.compute import Runner
from arriero.core import GenerationRequest, Sampling
from fidelity.asking import answers


def continuations(
    runner: Runner, prompts: Sequence[Sequence[int]], num_tokens: int, *, together: int, chunk: int
) -> list[list[int]]:
    """`num_tokens` for each prompt, `together` requests at a time, prompts read in pieces of at most `chunk`."""
    requests = [
        GenerationRequest(
            id="greedy", prompts=(tuple(prompt),), max_tokens=num_tokens, sampling=Sampling(temperature=0)
        )
        for prompt in prompts
    ]
    return [tokens for [tokens] in answers(runner, requests, together=together, chunk=chunk)]
