"""One model of a pool: in memory or not, and who uses it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Literal

from arriero.errors import EngineDied
from arriero.pool.served import ServedModel

logger = logging.getLogger(__name__)

EntryState = Literal["unloaded", "loading", "ready", "restarting", "unloading", "failed"]
"""`restarting`: its engine died and will be back; `failed`: it could not be loaded, or its engine died for good."""


_LOOK = 0.05
"""Seconds between two looks whether a model that is to be unloaded is still in use."""


class Entry:
    """What a pool knows of one model: its names, how it is loaded, and the model itself while it is."""

    def __init__(
        self,
        name: str,
        open_model: Callable[[], Awaitable[ServedModel]] | None,
        *,
        aliases: Sequence[str] = (),
        adapters: Sequence[str] = (),
        ttl: float = 0.0,
        preload: bool = False,
        estimate: Callable[[], int] = lambda: 0,
    ) -> None:
        """`open_model` returns the model with its engine started; None for one that is in memory for good.

        `aliases` are further names of it, `adapters` the names of its variants. It is unloaded after `ttl` seconds in
        which nobody used it; 0: never for that reason. `estimate` says how many bytes it will take, before it was ever
        loaded; it may block.
        """
        self.name = name
        self.aliases = tuple(aliases)
        self.adapters = tuple(adapters)
        self.ttl = ttl
        self.preload = preload
        self.created = int(time.time())
        self.model: ServedModel | None = None
        """While it is in memory."""
        self.known: ServedModel | None = None
        """As it was when it was in memory last, for who asks what it is."""
        self.num_bytes = 0
        """What it takes, or took, or is thought to take."""
        self.last_used = 0.0
        self.load_seconds = 5.0
        self.error: Exception | None = None
        """Why it could not be loaded the last time."""
        self.failed_at = 0.0
        self.num_waiting = 0
        """Requests that wait until it is loaded."""
        self._open_model = open_model
        self._estimate: Callable[[], int] | None = estimate
        self._num_holds = 0
        self._moving: Literal["loading", "unloading"] | None = None

    @classmethod
    def of(cls, model: ServedModel) -> Entry:
        """For a model that is in memory for good; whoever made it starts and closes its engine."""
        entry = cls(model.name, None, adapters=[variant.name for variant in model.variants])
        entry.model = entry.known = model
        entry.created = model.created
        return entry

    @property
    def is_fixed(self) -> bool:
        """Whether it never leaves memory."""
        return self._open_model is None

    @property
    def state(self) -> EntryState:
        """How it is."""
        if self._moving:
            return self._moving
        if self.model is None:
            return "failed" if self.error else "unloaded"
        engine = self.model.engine.state
        return engine if engine in ("ready", "restarting", "failed") else "loading"

    @property
    def in_use(self) -> bool:
        """Whether a task that asked for it has not ended, or its engine has work."""
        if self._num_holds:
            return True
        try:
            stats = self.model.engine.stats() if self.model else None
        except EngineDied:
            return False
        return stats is not None and bool(stats.waiting or stats.running)

    @property
    def may_go(self) -> bool:
        """Whether it is in memory, and need not be."""
        idle = not (self._moving or self.num_waiting or self.in_use)
        return idle and self.model is not None and not self.is_fixed

    @property
    def takes_memory(self) -> bool:
        """Whether it is in memory, or on its way there or away."""
        return self.model is not None or self._moving is not None

    def named(self, name: str) -> ServedModel | None:
        """The model or the one of its variants that has this name, while it is in memory."""
        return _named(self.model, name)

    def listed(self) -> Iterator[tuple[str, ServedModel | None]]:
        """Its name and those of its variants, with what is known of each."""
        for name in (self.name, *self.adapters):
            yield name, _named(self.known, name)

    def hold(self) -> None:
        """Have it stay in memory until the running task ends: a server answers each request in a task of its own."""
        self.last_used = time.monotonic()
        task = asyncio.current_task()
        if task and not self.is_fixed:
            self._num_holds += 1
            task.add_done_callback(self._release)

    async def load(self) -> None:
        """Bring it into memory; raises what its loading raises."""
        assert self._open_model
        self._moving, self.error = "loading", None
        began = time.monotonic()
        try:
            self.model = self.known = await self._open_model()
        except Exception as error:
            self.error, self.failed_at = error, time.monotonic()
            raise
        finally:
            self._moving = None
        self.load_seconds = time.monotonic() - began
        self.last_used = time.monotonic()
        await self.measure()
        logger.info("%s is loaded: %.1f s, %d MB", self.name, self.load_seconds, self.num_bytes >> 20)

    async def unload(self, grace: float) -> None:
        """Take it out of memory, once nobody uses it any more or `grace` seconds are over."""
        model = self.model
        if model is None or self.is_fixed:
            return
        self._moving = "unloading"
        try:
            deadline = time.monotonic() + grace
            while self.in_use and time.monotonic() < deadline:  # noqa: ASYNC110  # engines announce nothing
                await asyncio.sleep(_LOOK)
            self.model = None
            await model.engine.close()
        finally:
            self._moving = None
        logger.info("%s is unloaded", self.name)

    async def expect(self) -> int:
        """Bytes that it is likely to take: what it took, or else the estimate."""
        if self._estimate and not self.num_bytes:
            self.num_bytes = await asyncio.to_thread(self._estimate)
            self._estimate = None
        return self.num_bytes

    async def measure(self) -> None:
        """Look how many bytes it takes, where that can be told."""
        if self.model:
            measured = await asyncio.to_thread(self.model.engine.memory)
            self.num_bytes = measured or self.num_bytes

    def _release(self, task: asyncio.Task[object]) -> None:
        self._num_holds -= 1
        self.last_used = time.monotonic()


def _named(model: ServedModel | None, name: str) -> ServedModel | None:
    if model is None:
        return None
    return next((each for each in (model, *model.variants) if each.name == name), None)
