"""An engine in this process: one event loop asks, one model thread computes.

The life of a step, in the model thread: the scheduler plans it, the runner computes it, the sampler draws, the
scheduler takes the tokens in, and all events go to the event loop in one call. A lock guards the scheduler; it is
held for bookkeeping only, never while the runner or the sampler works, so the loop never waits on the model.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable

import numpy as np
from numpy.typing import NDArray

from arriero.core import ConstraintFactory, EngineStats, Event, Finished, GenerationRequest, Logprob, Runner, RunnerInfo
from arriero.engine.beams import Candidate
from arriero.engine.sampling import sample
from arriero.engine.scheduler import Scheduler
from arriero.engine.scoring import score
from arriero.engine.sequence import Group, Sequence
from arriero.engine.step import Results, Scoring, Step
from arriero.errors import ArrieroError, EngineDied, ModelLoadError

logger = logging.getLogger(__name__)


def execute(runner: Runner, step: Step) -> Results:
    """Let the runner do what a step says, and make of its logits what the step wants."""
    if step.copies:
        runner.copy(step.copies)
    for slot, length in step.truncations:
        runner.truncate(slot, length)
    for slot in step.frees:
        runner.free(slot)
    if not step.rows:
        return Results()
    logits = runner.step(step.rows)
    tokens = sample(logits, step.draws)
    return Results(
        tokens,
        {
            place: score(logits[draw.row], token, draw.logprobs)
            for place, (draw, token) in enumerate(zip(step.draws, tokens, strict=True))
            if draw.logprobs is not None
        },
        [_score_prompt(logits, scoring) for scoring in step.scorings],
        [_candidates(logits, first, rows) for first, rows in step.expansions.items()],
    )


def _score_prompt(logits: NDArray[np.float32], scoring: Scoring) -> list[Logprob]:
    num_top = scoring.sequence.group.request.prompt_logprobs or 0
    return [score(logits[row], token, num_top) for row, token in enumerate(scoring.tokens, scoring.first_row)]


def _candidates(logits: NDArray[np.float32], first: Sequence, rows: dict[int, int]) -> list[Candidate]:
    assert first.search
    return first.search.candidates(logits, rows)


class _Stream:
    """The loop's end of one request: what has happened and was not looked at yet."""

    def __init__(self, num_choices: int) -> None:
        self.num_unfinished = num_choices
        self.error: EngineDied | None = None
        self._events: list[Event] = []
        self._news: asyncio.Future[None] | None = None

    def push(self, event: Event) -> None:
        self._events.append(event)
        if isinstance(event, Finished):
            self.num_unfinished -= 1
        self._wake()

    def fail(self, error: EngineDied) -> None:
        self.error = error
        self._wake()

    async def take(self) -> list[Event]:
        """Everything since the last look, once there is something; empty when nothing more will come."""
        if not self._events and self.num_unfinished and not self.error:
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        events, self._events = self._events, []
        if not events and self.error:
            raise EngineDied(str(self.error)) from self.error
        return events

    def _wake(self) -> None:
        if self._news and not self._news.done():
            self._news.set_result(None)


class LocalEngine:
    """Answers requests with a runner of this process, any number at once; implements `arriero.core.Engine`.

    It belongs to the event loop that starts it and can be started once.
    """

    def __init__(
        self,
        runner_factory: Callable[[], Runner],
        *,
        constraints: ConstraintFactory,
        token_budget: int | None = None,
        max_queue: int = 256,
        chunk: int = 512,
        chunk_beside_decode: int = 64,
        prefix_tokens: int = 0,
    ) -> None:
        """The factory is called by `start`, in the model thread, where the runner then lives.

        `token_budget` bounds the tokens that admitted requests may come to hold; without it, every slot may be
        full. `max_queue` bounds the requests that wait. A step reads at most `chunk` prompt tokens,
        `chunk_beside_decode` while answers are being written. Of requests that ended, up to `prefix_tokens` prompt
        tokens are kept for prompts that begin like theirs.
        """
        self._runner_factory = runner_factory
        self._constraints = constraints
        self._token_budget = token_budget
        self._max_queue = max_queue
        self._chunk = chunk
        self._chunk_beside_decode = chunk_beside_decode
        self._prefix_tokens = prefix_tokens

        self._changed = threading.Condition()  # guards these four and everything inside the scheduler
        self._scheduler: Scheduler | None = None
        self._death: EngineDied | None = None
        self._closing = False
        self._ending = False

        self._thread: threading.Thread | None = None
        self._context = 0
        self._streams: dict[Group, _Stream] = {}  # unfinished requests; this and the rest is the loop's alone
        self._idle = asyncio.Event()
        self._idle.set()
        self._ended = asyncio.Event()

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together; known once started."""
        return self._context

    async def start(self) -> None:
        """Make the runner in the model thread and wait until it is ready.

        Raises:
            ModelLoadError: the runner could not be made.
        """
        if self._thread or self._closing:
            raise RuntimeError("An engine is started once.")
        self._loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="arriero-model", daemon=True)
        self._thread.start()
        await ready

    async def close(self, grace: float = 0.0) -> None:
        """Take no more requests, let those that were taken finish for `grace` seconds, then end them.

        Returns when the model thread is gone. May be called again, and at any time.
        """
        with self._changed:
            self._closing = True
        if self._thread is None:
            return
        if grace > 0:
            try:
                async with asyncio.timeout(grace):
                    await self._idle.wait()
            except TimeoutError:
                pass
        with self._changed:
            self._ending = True
            self._changed.notify()
        await self._ended.wait()
        self._thread.join()
        self._fail_streams(EngineDied("The engine was closed."))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        """Everything that happened to the request since the last look, until all its choices are finished.

        Raises:
            InvalidRequest, ContextOverflow, Overloaded: see `Scheduler.submit`.
            EngineDied: the engine failed or was closed, before or while it worked on the request.
        """
        group, stream = self._submit(request)
        try:
            while events := await stream.take():
                yield events
        finally:
            if self._streams.pop(group, None):
                self._settle()
                with self._changed:
                    if self._scheduler:
                        self._scheduler.abort(group)
                        self._changed.notify()

    def stats(self) -> EngineStats:
        """Counts as of now; raises `EngineDied` when the engine failed."""
        with self._changed:
            if self._death:
                raise EngineDied(str(self._death))
            return self._scheduler.stats() if self._scheduler else EngineStats()

    # On the loop

    def _submit(self, request: GenerationRequest) -> tuple[Group, _Stream]:
        constraint = self._constraints(request)
        with self._changed:
            if self._death:
                raise EngineDied(str(self._death))
            if self._closing or not self._scheduler:
                raise EngineDied("The engine is closed." if self._closing else "The engine is not started.")
            group = self._scheduler.submit(request, constraint)
            self._changed.notify()
        stream = self._streams[group] = _Stream(group.num_choices)
        self._idle.clear()
        return group, stream

    def _deliver(self, events: list[tuple[Group, Event]]) -> None:
        for group, event in events:
            stream = self._streams.get(group)
            if stream:  # else it was aborted
                stream.push(event)
                if not stream.num_unfinished:
                    del self._streams[group]
        self._settle()

    def _fail_streams(self, error: EngineDied) -> None:
        for stream in self._streams.values():
            stream.fail(error)
        self._streams.clear()
        self._settle()

    def _settle(self) -> None:
        if not self._streams:
            self._idle.set()

    # In the model thread

    def _run(self, ready: asyncio.Future[None]) -> None:
        """The model thread from first to last; whatever goes wrong in it must reach those who wait."""
        try:
            runner = self._runner_factory()
            try:
                scheduler = self._open(runner.info)
                self._post(_resolve, ready, None)
                while step := self._next_step(scheduler):
                    self._advance(scheduler, runner, step)
            finally:
                runner.close()
        except BaseException as error:
            self._die(error, ready)
        finally:
            self._post(self._ended.set)

    def _open(self, info: RunnerInfo) -> Scheduler:
        budget = info.num_slots * info.context if self._token_budget is None else self._token_budget
        self._context = min(info.context, budget)
        with self._changed:
            self._scheduler = Scheduler(
                info,
                token_budget=budget,
                max_queue=self._max_queue,
                chunk=self._chunk,
                chunk_beside_decode=self._chunk_beside_decode,
                prefix_tokens=self._prefix_tokens,
            )
            return self._scheduler

    def _next_step(self, scheduler: Scheduler) -> Step | None:
        """Sleep until there is something to do; None when the engine ends."""
        with self._changed:
            while not self._ending:
                if step := scheduler.schedule():
                    return step
                self._changed.wait()
            return None

    def _advance(self, scheduler: Scheduler, runner: Runner, step: Step) -> None:
        results = execute(runner, step)
        with self._changed:
            events = scheduler.update(step, results)
        if events:
            self._post(self._deliver, events)

    def _die(self, error: BaseException, ready: asyncio.Future[None]) -> None:
        """Tell everybody, once and for all; the details go to the log."""
        logger.error("The model thread ended.", exc_info=error)
        death = error if isinstance(error, EngineDied) else EngineDied("The engine failed while it was at work.")
        with self._changed:
            self._death = death
        self._post(
            _resolve, ready, error if isinstance(error, ArrieroError) else ModelLoadError(f"Not loaded: {error}")
        )
        self._post(self._fail_streams, death)

    def _post(self, callback: Callable[..., object], *arguments: object) -> None:
        """Have the loop call something; when the loop is gone, so is everybody who could ask for more."""
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            self._ending = True


def _resolve(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():  # its waiter was cancelled, or it was resolved before
        return
    if error:
        future.set_exception(error)
    else:
        future.set_result(None)
