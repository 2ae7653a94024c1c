"""Greedy continuations through the engine, as requests get them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from arriero.core import GenerationRequest, Runner, Sampling, Token
from arriero.engine.local import LocalEngine


def continuations(
    runner: Runner, prompts: Sequence[Sequence[int]], num_tokens: int, *, together: int, chunk: int
) -> list[list[int]]:
    """`num_tokens` for each prompt, `together` requests at a time, prompts read in pieces of at most `chunk`."""
    return asyncio.run(_all(runner, prompts, num_tokens, together, chunk))


async def _all(
    runner: Runner, prompts: Sequence[Sequence[int]], num_tokens: int, together: int, chunk: int
) -> list[list[int]]:
    engine = LocalEngine(lambda: _Borrowed(runner), constraints=lambda _: None, chunk=chunk, chunk_beside_decode=chunk)
    room = asyncio.Semaphore(together)

    async def one(prompt: Sequence[int]) -> list[int]:
        request = GenerationRequest(
            id="greedy", prompts=(tuple(prompt),), max_tokens=num_tokens, sampling=Sampling(temperature=0)
        )
        async with room:
            return [e.id async for events in engine.generate(request) for e in events if isinstance(e, Token)]

    await engine.start()
    try:
        return await asyncio.gather(*map(one, prompts))
    finally:
        await engine.close()


class _Borrowed:
    """A runner that outlives the engine."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> object:
        return getattr(self._runner, name)

    def close(self) -> None:
        """Leave it open for the next engine."""
        for slot in range(self._runner.info.num_slots):
            self._runner.free(slot)
