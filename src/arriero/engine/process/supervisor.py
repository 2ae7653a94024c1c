"""The half that the server talks to: an engine whose work is done by a child process, started anew when that dies."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from arriero.core import (
    Encoded,
    EncodingRequest,
    EngineState,
    EngineStats,
    Event,
    GenerationRequest,
    PromptScored,
    Token,
)
from arriero.engine.process.launched import Launched
from arriero.errors import ArrieroError, EngineClosed, EngineDied, Overloaded
from arriero.machine import proportional_memory

logger = logging.getLogger(__name__)

RERUNS = 2
"""How often a request that had not been answered at all is run again when the engine dies under it."""
RESTARTS = 8
"""How often in succession the engine is started again; an engine that lived for a minute begins anew."""
_REASONS: dict[EngineState, str] = {
    "failed": "The engine failed, and starting it again did not help.",
}
_LONG_LIFE = 60.0
_LONGEST_PAUSE = 30.0


def pause(num_deaths: int) -> float:
    """Seconds before an engine is started again that died so often in succession: none at first, then doubling."""
    return 0.0 if num_deaths <= 1 else min(_LONGEST_PAUSE, 0.5 * 2 ** (num_deaths - 2))


class ProcessEngine:
    """Answers requests with an engine in a child process; implements `arriero.core.Engine`.

    When the child dies, or freezes and is killed, requests of which nobody has read anything are run again on the next
    one, others end with `EngineDied`. It belongs to the event loop that starts it and can be started once.
    """

    def __init__(
        self,
        command: Sequence[str],
        order: Any,
        *,
        name: str = "the model",
        on_progress: Callable[[Any], None] | None = None,
        patience: float = 30.0,
        silence: float = 10.0,
        standstill: float = 60.0,
    ) -> None:
        """`command` starts a process that calls `arriero.engine.process.child.run`; `order` says what it is to open.

        `name` is what the log calls its model. `on_progress` hears what is told while it opens. Requests wait up to
        `patience` seconds for an engine that is being started again. `silence` and `standstill` are the seconds after
        which a child is taken for frozen; see `Launched`.
        """
        self._command = command
        self._order = order
        self._name = name
        self._on_progress = on_progress or (lambda _: None)
        self._patience = patience
        self._frozen = {"silence": silence, "standstill": standstill}
        self._state: EngineState = "starting"
        self._changed = asyncio.Event()
        self._child: Launched | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._past = EngineStats()
        self._context = self._source_context = 0
        self.about: Any = None
        """What was told of the engine when it was started."""

    @property
    def context(self) -> int:
        """See `Engine.context`; known once started."""
        return self._context

    @property
    def source_context(self) -> int:
        """See `Engine.source_context`; known once started."""
        return self._source_context

    @property
    def state(self) -> EngineState:
        """See `Engine.state`."""
        return self._state

    @property
    def pid(self) -> int | None:
        """The child's number, while there is one."""
        return self._child.pid if self._child and not self._child.ended.is_set() else None

    def memory(self) -> int | None:
        """Bytes that the child takes, what it shares with others divided among them; None if that is not known."""
        return proportional_memory(self.pid) if self.pid else None

    async def start(self) -> None:
        """Start the child and wait until its engine is; raises `ModelLoadError`, or what else the child says."""
        if self._supervision or self._state == "closed":
            raise RuntimeError("An engine is started once.")
        try:
            await self._launch()
        except BaseException:
            await self._stop("failed")
            raise
        self._supervision = asyncio.create_task(self._supervise())

    async def close(self, grace: float = 0.0) -> None:
        """Take no more requests, let those that were taken finish for `grace` seconds, then end them and the child.

        Returns when the child is gone. May be called again, and at any time.
        """
        self._set("closed")
        if grace > 0 and self._child:
            try:
                async with asyncio.timeout(grace):
                    await self._child.idle.wait()
            except TimeoutError:
                pass
        if self._supervision:
            self._supervision.cancel()
        await self._stop("closed")

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        """Everything that happened to the request since the last look, until all its choices are finished.

        Raises what the child's engine raises, and:
            EngineDied: it died or was closed, after a part of the answer was read or too often before.
            Overloaded: it is being started again, and that takes long.
        """
        async with aclosing(self._ask(request, len(request.prompts) * request.num_choices)) as news:
            async for events in news:
                yield events

    async def encode(self, request: EncodingRequest) -> Encoded:
        """What the child's engine makes of the inputs; raises as `generate`."""
        async with aclosing(self._ask(request, 1)) as news:
            encoded: Encoded = (await anext(news))[0]
            return encoded

    def stats(self) -> EngineStats:
        """Counts over all children's lives, as of the last message; raises `EngineDied` when the engine failed."""
        if self._state == "failed":
            raise EngineDied(_REASONS["failed"])
        now, past = self._child.stats if self._child else EngineStats(), self._past
        return replace(
            now,
            steps=past.steps + now.steps,
            prompt_tokens=past.prompt_tokens + now.prompt_tokens,
            generated_tokens=past.generated_tokens + now.generated_tokens,
            restarts=past.restarts,
        )

    async def _ask(
        self, request: GenerationRequest | EncodingRequest, num_parts: int
    ) -> AsyncGenerator[list[Any], None]:
        is_read_along = isinstance(request, GenerationRequest) and request.streamed
        told: list[Any] = []
        for attempt in range(RERUNS + 1):
            child = self._child if self._state == "ready" else await self._next_child()
            assert child
            repeated = _Repeated(told)
            try:
                async with aclosing(child.ask(request, num_parts)) as news:
                    async for events in news:
                        if fresh := repeated.without(events):
                            told += fresh[:1] if is_read_along else fresh
                            yield fresh
                return
            except EngineDied:
                is_over = attempt == RERUNS or self._state in ("closed", "failed")
                if (told and is_read_along) or is_over or not child.ended.is_set():
                    raise
                logger.warning("Request %s is run again: the engine died before anybody read of it.", request.id)

    async def _next_child(self) -> Launched:
        """The next child that lives; raises `EngineDied` when there will be none, `Overloaded` when not soon."""
        try:
            async with asyncio.timeout(self._patience):
                while self._state == "restarting":
                    await self._changed.wait()
        except TimeoutError:
            raise Overloaded(
                "The model's engine died and is being started again; try again later.", retry_after=self._patience
            ) from None
        if self._state == "closed":
            raise EngineClosed("The engine is closed.")
        if self._state != "ready" or self._child is None:
            raise EngineDied(_REASONS.get(self._state, "The engine is not started."))
        return self._child

    # Its children

    async def _launch(self) -> None:
        self._child = Launched(self._on_progress, self._mourn, name=self._name, **self._frozen)
        ready = await self._child.launch(self._command, self._order)
        self.about, self._context, self._source_context = ready.about, ready.context, ready.source_context
        self._set("ready")

    def _mourn(self) -> None:
        """The child is gone."""
        if self._state == "ready":
            self._set("restarting")

    async def _supervise(self) -> None:
        """Whenever the child is gone start the next one, until that has failed too often."""
        time = asyncio.get_running_loop().time
        born, num_deaths = time(), 0
        while num_deaths <= RESTARTS:
            assert self._child
            await self._child.ended.wait()
            num_deaths = 1 if time() - born > _LONG_LIFE else num_deaths + 1
            restarts = self._past.restarts + 1
            self._past = replace(self.stats(), restarts=restarts)
            delay = pause(num_deaths)
            logger.warning("The engine of %s is started again in %.1f s (restart %d).", self._name, delay, restarts)
            await asyncio.sleep(delay)
            born = time()
            try:
                await self._launch()
            except ArrieroError as error:
                logger.error("The engine of %s could not be started again: %s", self._name, error)
            else:
                logger.info("The engine of %s is at work again.", self._name)
                born = time()
        logger.error("The engine of %s died %d times in succession and is not started again.", self._name, num_deaths)
        self._set("failed")

    async def _stop(self, state: EngineState) -> None:
        self._set(state)
        if self._child:
            await self._child.stop()

    def _set(self, state: EngineState) -> None:
        self._state = state
        self._changed.set()
        self._changed = asyncio.Event()


class _Repeated:
    """What was told of a request that is run again, and so comes again: a request draws the same whenever it is run."""

    def __init__(self, told: Sequence[Any]) -> None:
        self._expected: dict[tuple[type, int], deque[Any]] = defaultdict(deque)
        for event in told:
            self._expected[_part(event)].append(event)

    def without(self, events: list[Any]) -> list[Any]:
        """The events that were not told yet; raises `EngineDied` if something else comes than what was told."""
        fresh = []
        for event in events if self._expected else ():
            if not (expected := self._expected.get(_part(event))):
                fresh.append(event)
            elif _what(expected.popleft()) != _what(event):
                raise EngineDied("The engine died while it was at work, and answers otherwise now.")
        return fresh if self._expected else events


def _part(event: Any) -> tuple[type, int]:
    """Which of a request's sequences of events it belongs to."""
    return type(event), event.prompt if isinstance(event, PromptScored) else getattr(event, "index", 0)


def _what(event: Any) -> Any:
    """What has to be the same again; probabilities may differ in their last digits."""
    return event.id if isinstance(event, Token) else getattr(event, "reason", None)
