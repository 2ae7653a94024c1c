"""Which inputs an encoder reads together: batches by length, of whatever all callers have waiting.

    while batch := batches.schedule():
        vectors = ...                      # the encoder computes the batch
        events = batches.update(batch, vectors)

- **Callers take turns** by the tokens that are read for them (`arriero.engine.queue`). The oldest input of whose turn
  it is is in the next batch, so nobody waits for ever, whatever others bring.
- **Those nearest to it in length join it**, of each length those of whose turn it is, the oldest first, as long as the
  batch, with every input as long as its longest, has at most `batch_tokens` tokens: attention pads. Who joins pays.
"""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arriero.compute import EncoderInfo
from arriero.core import Encoded, EncodingRequest, EngineStats
from arriero.engine import limits
from arriero.engine.pace import Pace
from arriero.engine.queue import FairQueue
from arriero.errors import InvalidRequest, Overloaded


@dataclass(eq=False, slots=True)
class Job:
    """One request, and the handle by which it is aborted."""

    request: EncodingRequest
    waiting: OrderedDict[Input, None]
    """Its inputs that were in no batch yet, in their order."""
    vectors: NDArray[np.float32]
    """float32 [inputs, width], all there once none is left."""
    num_left: int
    """Inputs whose vectors are not there yet."""
    queued_at: float
    """When it came, in seconds."""
    queue_seconds: float = 0.0
    """How long it waited until an input of it was in a batch."""
    started: bool = False
    """Whether one was."""
    aborted: bool = False


@dataclass(eq=False, slots=True)
class Input:
    """One input of a request."""

    job: Job
    index: int

    @property
    def tokens(self) -> tuple[int, ...]:
        """Its token ids."""
        return self.job.request.inputs[self.index]

    @property
    def first_segment(self) -> int:
        """How many of them belong to its first segment."""
        segments = self.job.request.first_segments
        return segments[self.index] if segments else len(self.tokens)


class Batches:
    """Everything that waits for one encoder; no threads and no locks, see `arriero.engine.thread`."""

    def __init__(
        self,
        info: EncoderInfo,
        *,
        batch_tokens: int,
        max_queue: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_queue` bounds the requests of which nothing was read yet, beside the one that is next."""
        self._info = info
        self._batch_tokens = batch_tokens
        self._max_queue = max_queue
        self._clock = clock
        self._queue: FairQueue[Job] = FairQueue()
        self._by_length: dict[int, dict[tuple[str, int], OrderedDict[Input, None]]] = {}  # by caller and priority
        self._lengths: list[int] = []  # the keys, sorted
        self._num_waiting = 0  # requests of which nothing was read yet
        self._computing = 0
        self._started = 0.0
        self._pace = Pace()
        self._num_steps = 0
        self._num_tokens = 0

    def submit(self, request: EncodingRequest) -> Job:
        """Queue a request.

        Raises:
            InvalidRequest, ContextOverflow: it can never run, see `limits.check_inputs`.
            Overloaded: it would have to wait, and `max_queue` requests are waiting already.
        """
        if request.adapter:
            raise InvalidRequest(f"The model has no adapter {request.adapter}.", param="model")
        limits.check_inputs(request, self._info.vocab_size, self._info.context)
        if request.first_segments and len(request.first_segments) != len(request.inputs):
            raise InvalidRequest("There must be as many first segments as inputs.", param="input")
        count = len(request.inputs)
        job = Job(request, OrderedDict(), np.empty((count, self._info.width), np.float32), count, self._clock())
        self._queue.push(job, cost=0.0, caller=request.caller, priority=request.priority)
        if not self._has_room(request.caller):
            self._queue.remove(job)
            raise Overloaded("The queue is full.", retry_after=self._pace.retry_after(self._num_waiting))
        for index in range(count):
            self._add(Input(job, index))
        self._num_waiting += 1
        return job

    def abort(self, job: Job) -> None:
        """Forget a request; what is being computed for it is ignored."""
        job.aborted = True
        self._num_waiting -= not job.started
        job.started = True
        for each in list(job.waiting):
            self._remove(each)

    def schedule(self) -> list[Input] | None:
        """The next batch; None when nothing waits."""
        if not self._queue:
            return None
        self._started = self._clock()
        first = next(iter(self._queue.first().waiting))
        each: Input | None = first
        batch: list[Input] = []
        length = longest = len(first.tokens)
        while each and (not batch or longest * (len(batch) + 1) <= self._batch_tokens):
            batch.append(each)
            self._take(each)
            each = self._nearest(length)
            longest = max(longest, len(each.tokens)) if each else longest
        self._computing = len(batch)
        return batch

    def update(self, batch: list[Input], vectors: NDArray[np.float32]) -> list[tuple[Job, Encoded]]:
        """Take in the vectors of a batch, float32 [inputs, width]; the requests that are complete with them."""
        self._computing = 0
        self._pace.work(self._clock() - self._started)
        self._num_steps += 1
        self._num_tokens += sum(len(each.tokens) for each in batch)
        events = []
        for each, vector in zip(batch, vectors, strict=True):
            job = each.job
            if job.aborted:
                continue
            job.vectors[each.index] = vector
            job.num_left -= 1
            if job.num_left == 0:
                self._pace.end()
                events.append((job, Encoded(job.vectors, job.queue_seconds)))
        return events

    def stats(self) -> EngineStats:
        """Counts as of now; `running` are the inputs that are being computed."""
        return EngineStats(
            waiting=self._num_waiting,
            running=self._computing,
            steps=self._num_steps,
            prompt_tokens=self._num_tokens,
        )

    def _has_room(self, caller: str) -> bool:
        """Whether one more may wait, which is already in the queue: if that is not full, or its caller has less than
        their share of it, or it does not have to wait."""
        if self._num_waiting < self._max_queue or not (len(self._queue) > 1 or self._computing):
            return True
        return self._queue.num_of(caller) * self._queue.num_callers <= self._max_queue

    def _nearest(self, length: int) -> Input | None:
        """Of all that wait the input whose length is nearest to this one, of who is furthest behind, the oldest."""
        if not self._lengths:
            return None
        above = bisect_left(self._lengths, length)
        around = self._lengths[max(0, above - 1) : above + 1]
        nearest = min(around, key=lambda each: (abs(each - length), -each))
        lines = self._by_length[nearest]
        turn = (
            min(lines, key=lambda line: (self._queue.place(line[0]), line[1])) if len(lines) > 1 else next(iter(lines))
        )
        return next(iter(lines[turn]))

    def _take(self, each: Input) -> None:
        """Move one that waits into the batch, at its caller's cost."""
        job = each.job
        if not job.started:
            self._num_waiting -= 1
            job.started, job.queue_seconds = True, self._started - job.queued_at
        self._queue.charge(job.request.caller, len(each.tokens), job.request.weight)
        self._remove(each)

    def _add(self, each: Input) -> None:
        length, request = len(each.tokens), each.job.request
        if length not in self._by_length:
            self._by_length[length] = {}
            insort(self._lengths, length)
        line = self._by_length[length].setdefault((request.caller, request.priority), OrderedDict())
        line[each] = None
        each.job.waiting[each] = None

    def _remove(self, each: Input) -> None:
        length, job = len(each.tokens), each.job
        key = job.request.caller, job.request.priority
        lines = self._by_length[length]
        del job.waiting[each], lines[key][each]
        if not job.waiting:
            self._queue.remove(job)
        if not lines[key]:
            del lines[key]
        if not lines:
            del self._by_length[length]
            del self._lengths[bisect_left(self._lengths, length)]
