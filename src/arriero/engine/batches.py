"""Which inputs an encoder reads together: batches by length, of whatever all callers have waiting.

    while batch := batches.schedule():
        vectors = ...                      # the encoder computes the batch
        events = batches.update(batch, vectors)

- **The oldest input is in the next batch**, so nobody waits for ever, whatever others bring.
- **Those nearest to it in length join it**, the oldest of each length first, as long as the batch, with every input
  as long as its longest, has at most `batch_tokens` tokens: attention pads.
"""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arriero.compute import EncoderInfo
from arriero.core import EncodingRequest, EngineStats
from arriero.engine import limits
from arriero.engine.encodings import Encoded
from arriero.engine.pace import Pace
from arriero.errors import InvalidRequest, Overloaded


@dataclass(eq=False, slots=True)
class Job:
    """One request, and the handle by which it is aborted."""

    request: EncodingRequest
    inputs: list[Input]
    vectors: NDArray[np.float32]
    """float32 [inputs, width], all there once none is left."""
    num_left: int
    """Inputs whose vectors are not there yet."""
    started: bool = False
    """Whether an input of it was in a batch."""
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
        self._waiting: OrderedDict[Input, None] = OrderedDict()  # oldest first
        self._by_length: dict[int, OrderedDict[Input, None]] = {}
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
        if self._num_waiting >= self._max_queue and (self._waiting or self._computing):
            raise Overloaded("The queue is full.", retry_after=self._pace.retry_after(self._num_waiting))
        count = len(request.inputs)
        job = Job(request, [], np.empty((count, self._info.width), np.float32), count)
        job.inputs = [Input(job, index) for index in range(count)]
        for each in job.inputs:
            self._add(each)
        self._num_waiting += 1
        return job

    def abort(self, job: Job) -> None:
        """Forget a request; what is being computed for it is ignored."""
        job.aborted = True
        self._num_waiting -= not job.started
        job.started = True
        for each in job.inputs:
            if each in self._waiting:
                self._remove(each)

    def schedule(self) -> list[Input] | None:
        """The next batch; None when nothing waits."""
        if not self._waiting:
            return None
        batch: list[Input] = []
        longest = 0
        for each in self._nearest(next(iter(self._waiting))):
            longest = max(longest, len(each.tokens))
            if batch and longest * (len(batch) + 1) > self._batch_tokens:
                break
            batch.append(each)
        for each in batch:
            self._remove(each)
            self._num_waiting -= not each.job.started
            each.job.started = True
        self._computing, self._started = len(batch), self._clock()
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
                events.append((job, Encoded(job.vectors)))
        return events

    def stats(self) -> EngineStats:
        """Counts as of now; `running` are the inputs that are being computed."""
        return EngineStats(
            waiting=self._num_waiting,
            running=self._computing,
            steps=self._num_steps,
            prompt_tokens=self._num_tokens,
        )

    def _nearest(self, first: Input) -> Iterator[Input]:
        """All that wait, by how far their length is from this one's: it first, then the oldest of its length."""
        yield first
        length = len(first.tokens)
        above = bisect_left(self._lengths, length)
        below = above - 1
        while below >= 0 or above < len(self._lengths):
            down = length - self._lengths[below] if below >= 0 else None
            up = self._lengths[above] - length if above < len(self._lengths) else None
            if down is None or (up is not None and up <= down):
                nearest, above = self._lengths[above], above + 1
            else:
                nearest, below = self._lengths[below], below - 1
            yield from (each for each in self._by_length[nearest] if each is not first)

    def _add(self, each: Input) -> None:
        length = len(each.tokens)
        if length not in self._by_length:
            self._by_length[length] = OrderedDict()
            insort(self._lengths, length)
        self._by_length[length][each] = None
        self._waiting[each] = None

    def _remove(self, each: Input) -> None:
        length = len(each.tokens)
        del self._waiting[each]
        del self._by_length[length][each]
        if not self._by_length[length]:
            del self._by_length[length]
            del self._lengths[bisect_left(self._lengths, length)]
