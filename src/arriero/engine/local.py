"""An engine in this process: the scheduler plans each step, the runner computes it, the sampler draws."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

import numpy as np
from numpy.typing import NDArray

from arriero.compute import Row, Runner
from arriero.core import (
    ConstraintFactory,
    Encoded,
    EncodingRequest,
    Event,
    GenerationRequest,
    Logprob,
)
from arriero.engine.beams import Candidate
from arriero.engine.inline import InlineWork
from arriero.engine.sampling import sample
from arriero.engine.scheduler import Scheduler
from arriero.engine.scoring import score
from arriero.engine.sequence import Sequence
from arriero.engine.step import Results, Scoring, Step
from arriero.engine.thread import InProcess, ModelThread


def execute(runner: Runner, step: Step) -> Results:
    """Let the runner do what a step says, and make of its logits what the step wants."""
    if step.copies:
        runner.copy(step.copies)
    for slot, length in step.truncations:
        runner.truncate(slot, length)
    for slot in step.frees:
        runner.free(slot)
    for slot, inputs, adapter in step.inputs:
        runner.encode(slot, inputs, adapter)
    sums = [_sum_states(runner, reading.row) for reading in step.readings]
    if not step.rows:
        return Results(sums=sums)
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
        sums,
    )


def _sum_states(runner: Runner, row: Row) -> NDArray[np.float64]:
    if row.position == 0:
        runner.truncate(row.slot, 0)  # an earlier input of the same request may be there
    total: NDArray[np.float64] = runner.states(row).sum(axis=0, dtype=np.float64)
    return total


def _score_prompt(logits: NDArray[np.float32], scoring: Scoring) -> list[Logprob]:
    num_top = scoring.sequence.group.request.prompt_logprobs or 0
    return [score(logits[row], token, num_top) for row, token in enumerate(scoring.tokens, scoring.first_row)]


def _candidates(logits: NDArray[np.float32], first: Sequence, rows: dict[int, int]) -> list[Candidate]:
    assert first.search
    return first.search.candidates(logits, rows)


class _Generation:
    """What the model thread of a `LocalEngine` does."""

    def __init__(self, runner: Runner, scheduler: Scheduler) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self.schedule = scheduler.schedule
        self.spare = scheduler.spare
        self.update = scheduler.update
        self.abort = scheduler.abort
        self.stats = scheduler.stats
        self.close = runner.close

    def execute(self, step: Step) -> Results:
        return execute(self.runner, step)


class LocalEngine(InProcess):
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
        chunk_beside_decode: int = 512,
        prefix_tokens: int = 0,
        thread: bool = True,
    ) -> None:
        """The factory is called by `start`, in the model thread, where the runner then lives.

        Without a `thread` it lives on the event loop, for runners that take hardly any time.

        `token_budget` bounds the tokens that admitted requests may come to hold; without it, every slot may be
        full. `max_queue` bounds the requests that wait. A step reads at most `chunk` prompt tokens, and at most
        `chunk_beside_decode` while answers are being written, fewer where those would wait long. Of requests that
        ended, up to `prefix_tokens` prompt tokens are kept for prompts that begin like theirs.
        """
        self._runner_factory = runner_factory
        self._constraints = constraints
        self._token_budget = token_budget
        self._max_queue = max_queue
        self._chunk = chunk
        self._chunk_beside_decode = chunk_beside_decode
        self._prefix_tokens = prefix_tokens
        self._context = self._source_context = 0
        super().__init__(ModelThread(self._open) if thread else InlineWork(self._open))

    @property
    def context(self) -> int:
        """See `Engine.context`; known once started."""
        return self._context

    @property
    def source_context(self) -> int:
        """See `Engine.source_context`; known once started."""
        return self._source_context

    def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        """Everything that happened to the request since the last look, until all its choices are finished.

        Raises:
            InvalidRequest, ContextOverflow, Overloaded: see `Scheduler.submit`.
            EngineDied: the engine failed or was closed, before or while it worked on the request.
        """
        num_choices = len(request.prompts) * request.num_choices
        return self._thread.ask(
            lambda: self._scheduler.submit(request, self._constraints(request)), num_choices, streamed=request.streamed
        )

    async def encode(self, request: EncodingRequest) -> Encoded:
        """The mean of the last hidden states over each input's tokens, float32 [inputs, hidden_size].

        Raises:
            InvalidRequest, ContextOverflow, Overloaded: see `Scheduler.submit_encoding`.
            EngineDied: as `generate`.
        """
        return await self._thread.encoded(lambda: self._scheduler.submit_encoding(request))

    def _open(self) -> _Generation:
        runner = self._runner_factory()
        info = runner.info
        slot = info.context + info.source_context
        budget = info.num_slots * slot if self._token_budget is None else self._token_budget
        self._context = min(info.context - len(info.decoder_start), budget)
        self._source_context = min(info.source_context, budget)
        self._scheduler = Scheduler(
            info,
            token_budget=budget,
            max_queue=self._max_queue,
            chunk=self._chunk,
            chunk_beside_decode=self._chunk_beside_decode,
            prefix_tokens=self._prefix_tokens,
        )
        return _Generation(runner, self._scheduler)
