"""Answers of a runner through the engine, as requests get them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from arriero.compute import Runner
from arriero.core import Event, Finished, GenerationRequest, Token
from arriero.engine.local import LocalEngine


def answers(
    runner: Runner, requests: Sequence[GenerationRequest], *, together: int, chunk: int
) -> list[list[list[int]]]:
    """By request and choice the tokens, the one that ended it included."""
    everything = asyncio.run(_ask(runner, requests, together, chunk))
    return [
        [_tokens(events, index) for index in range(request.num_choices)]
        for request, events in zip(requests, everything, strict=True)
    ]


def _tokens(events: Sequence[Event], index: int) -> list[int]:
    tokens = [event for event in events if isinstance(event, Token) and event.index == index]
    endings = [e.ending for e in events if isinstance(e, Finished) and e.index == index and e.ending]
    return [token.id for token in (*tokens, *endings)]


async def _ask(runner: Runner, requests: Sequence[GenerationRequest], together: int, chunk: int) -> list[list[Event]]:
    engine = LocalEngine(lambda: _Borrowed(runner), constraints=lambda _: None, chunk=chunk, chunk_beside_decode=chunk)
    room = asyncio.Semaphore(together)

    async def one(request: GenerationRequest) -> list[Event]:
        async with room:
            return [event async for events in engine.generate(request) for event in events]

    await engine.start()
    try:
        return await asyncio.gather(*map(one, requests))
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
