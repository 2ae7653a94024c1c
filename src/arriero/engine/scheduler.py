"""Which sequences run in a step, and what the sampled tokens mean for them: continuous batching without tensors.

    while step := scheduler.schedule():
        results = ...                      # the runner computes the step, the sampler draws
        events = scheduler.update(step, results)

Rules:

- **Callers take turns** by what their requests cost (`arriero.engine.queue`); those of one are served as they came.
  The first in the queue is admitted whole (a slot and a reservation of prompt plus `max_tokens` for every choice) or
  not yet. Nobody overtakes: while it does not fit, nobody behind it is admitted. So it never starves: whoever runs
  ends within its own `max_tokens`, and the engine empties towards it, though a slot may idle beside a wide request.
- **Everybody who speaks goes on speaking.** Every decoding sequence has one token in every step.
- **An answer whose length nobody limited** has less reserved, asks for more as it comes, and may have to wait for it:
  the exception to the rule before. Nobody is admitted meanwhile. See `arriero.engine.budget`.
- **Prompts share what is left.** A step reads at most `chunk` prompt tokens, and beside running answers at most
  `chunk_beside_decode`, or fewer, so that a long prompt does not stall them (`arriero.engine.pieces`). The oldest
  prompt goes first and is the only one that may be cut (never into pieces below the runner's `min_prompt_chunk`, even
  if that takes a few tokens more); younger ones join it as rows of their own if they fit whole. What an encoder reads
  is never cut.
- **A prompt is read once.** Its first choice reads it, the others copy that slot and draw from the same logits.
- **What was read is not read again.** A prompt that begins like one that was read, or is being read, copies that
  beginning; if an older prompt is about to read it, it waits for that. Slots of ended requests keep their prompts
  until slots or tokens are needed, the least recently used go first (`arriero.engine.prefixes`).
- **Spare time** is for reading answers as the prompts that they are likely to become, in small pieces (`spare`).
- **Inputs that are encoded** share that room: they and the prompts of answers go first in turns. See `encodings`.
- **A beam search is a request for as many choices as it has beams**, until it decides which tokens they get: it
  says which slots become copies of which, and all its slots go back when it is over.

What sampled tokens mean for their sequences is told by `arriero.engine.outcome`, who holds which slots and tokens by
`arriero.engine.room`. The scheduler knows the runner by its `RunnerInfo` alone. It has no threads and no locks:
`arriero.engine.local` sees to it that one thread at a time is here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from arriero.compute import RunnerInfo
from arriero.core import Constraint, EncodingRequest, EngineStats, GenerationRequest
from arriero.engine import limits
from arriero.engine.encodings import LEAST_COST, Encoding, Encodings
from arriero.engine.outcome import News, outcome_of
from arriero.engine.pace import Pace
from arriero.engine.pieces import Pieces
from arriero.engine.prefixes import Prefixes
from arriero.engine.queue import FairQueue
from arriero.engine.room import Room
from arriero.engine.sequence import Group, Sequence, cost_of, group_of
from arriero.engine.step import Results, Step
from arriero.errors import InvalidRequest, Overloaded

SPARE_CHUNK = 16
"""Tokens that are read at once while nobody asks: more would be read faster, and make who comes wait longer."""


class Scheduler:
    """Continuous batching over the slots of one runner."""

    def __init__(
        self,
        info: RunnerInfo,
        *,
        token_budget: int,
        max_queue: int,
        chunk: int = 512,
        chunk_beside_decode: int = 512,
        prefix_tokens: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`token_budget` bounds the tokens that admitted requests may come to hold; `max_queue` the waiting requests;
        `prefix_tokens` the prompt tokens of ended requests that are kept for prompts that begin like theirs.

        `clock` (seconds) serves only to tell how long requests waited, to learn how large pieces of prompts may be, and
        when a full engine may have room again.
        """
        self._info = info
        self._token_budget = token_budget
        self._max_queue = max_queue
        self._chunk = chunk
        self._pieces = Pieces(chunk_beside_decode)
        self._clock = clock

        self._waiting: FairQueue[Group | Encoding] = FairQueue()
        self._running: list[Sequence] = []  # oldest first; followers join when their leader has read the prompt
        self._encodings = Encodings()
        self._encodings_first = False
        self._short: list[Sequence] = []  # those that wait for more tokens of the budget
        can_share = info.chunked_prefill and info.truncation and not info.source_context
        with_answers = info.alike or not info.invariant
        kept = Prefixes(prefix_tokens if can_share else 0, info.min_prompt_chunk, with_answers=with_answers)
        self._room = Room(info.num_slots, token_budget, kept)
        self._copies: list[tuple[int, Sequence]] = []  # what the next step must begin with
        self._guessed: Sequence | None = None  # its slot holds more than what was right
        self._just_ended: list[Sequence] = []  # their slots may be kept, but only for the prompts in them

        self._num_steps = self._num_prompt_tokens = self._num_generated_tokens = 0
        self._pace = Pace()

    def submit(self, request: GenerationRequest, constraint: Constraint | None = None) -> Group:
        """Queue a request; the group it returns comes back in the events and serves to abort.

        Every choice watches itself with its own copy of `constraint`.

        Raises:
            InvalidRequest, ContextOverflow: it can never run, see `limits.check`.
            Overloaded: it would have to wait, and `max_queue` requests are waiting already.
        """
        limits.check(request, self._info, self._token_budget)
        group = group_of(request, constraint, self._info.decoder_start)
        group.queued_at = self._clock()
        self._queue(group)
        return group

    def submit_encoding(self, request: EncodingRequest) -> Encoding:
        """Queue a request for vectors, which `update` returns once it is complete, and which serves to abort.

        Raises:
            InvalidRequest, ContextOverflow: it can never run, see `limits.check_inputs`.
            Overloaded: as `submit`.
        """
        if not self._info.hidden_size:
            raise InvalidRequest("This model gives no vectors.", param="model")
        longest = min(self._info.context, self._token_budget)
        limits.check_inputs(request, limits.vocabulary(request, self._info), longest)
        vectors = np.empty((len(request.inputs), self._info.hidden_size), np.float32)
        encoding = Encoding(request, vectors, queued_at=self._clock())
        self._queue(encoding)
        return encoding

    def abort(self, group: Group | Encoding) -> None:
        """Forget a request, whatever it was doing; its slots and reservation are free at once.

        A step that is being computed may go on: its results for this request are ignored.
        """
        if group in self._waiting:
            self._leave_queue(group)
            return
        if isinstance(group, Encoding):
            if not group.finished:
                self._encodings.remove(group)
                self._release_encoding(group)
            return
        for sequence in group.sequences:
            if not sequence.finished:
                self._release(sequence)
        self._running = [sequence for sequence in self._running if not sequence.finished]

    def schedule(self) -> Step | None:
        """Plan the next step; None when there is nothing to do until a request comes."""
        self._grow()
        self._admit()
        if not self._running and not self._encodings and not self._room.has_frees:
            return None
        step = self._begin()
        prefilling, speaking = [], []
        for sequence in self._running:
            if sequence.num_computed_tokens < sequence.num_prompt_tokens:
                if self._room.kept.ready(sequence, self._running):
                    prefilling.append(sequence)
            elif sequence.num_computed_tokens < len(sequence.tokens) and sequence not in self._short:
                speaking.append(sequence)  # else its place in a beam search has no beam
        may_guess = self._info.num_guesses and len(speaking) == 1 and not prefilling and not self._encodings
        guesses = speaking[0].guess(self._info) if may_guess else []
        for sequence in speaking:
            step.add_row(sequence, 1, guesses)
        room = self._chunk
        if speaking:
            length = prefilling[0].num_prompt_tokens - prefilling[0].num_shared_tokens if prefilling else self._chunk
            room = self._pieces.size(len(speaking), len(prefilling) + len(self._encodings), length)
        self._read(step, prefilling, room)
        return step

    def spare(self) -> Step | None:
        """Plan a step for what may be asked next, when there is nothing else to do; None if there is not even that."""
        sequence = self._room.unread()
        if sequence is None:
            return None
        step = self._begin()
        remaining = sequence.num_prompt_tokens - sequence.num_computed_tokens
        step.add_reading(sequence, self._chunk_of(remaining, SPARE_CHUNK))
        return step

    def update(self, step: Step, results: Results) -> list[News]:
        """Take in what came of a step; what happened, in order.

        Sequences that finish leave their slots at once, for the next `schedule`. What belongs to requests that were
        aborted while the step ran is ignored.
        """
        self._take_stock(step)
        outcome = outcome_of(step, results)
        self._num_generated_tokens += outcome.num_generated_tokens
        self._copies += outcome.copies
        self._guessed = outcome.guessed
        for sequence in outcome.ended:
            self._release(sequence)
        for encoding in outcome.encoded:
            self._release_encoding(encoding)
        self._running += outcome.joined
        if outcome.ended:
            self._running = [sequence for sequence in self._running if not sequence.finished]
        return outcome.news

    def stats(self) -> EngineStats:
        """Counts as of now."""
        return EngineStats(
            waiting=len(self._waiting),
            running=self._room.num_held,
            num_slots=self._info.num_slots,
            steps=self._num_steps,
            prompt_tokens=self._num_prompt_tokens,
            generated_tokens=self._num_generated_tokens,
            token_budget=self._token_budget,
            reserved_tokens=self._room.num_reserved_tokens,
            kept_tokens=self._room.kept.num_tokens,
        )

    # Admission

    def _queue(self, group: Group | Encoding) -> None:
        """Put one in the queue, or refuse it where that is full and its caller has their share of it."""
        request, waiting = group.request, self._waiting
        caller = request.caller
        waiting.push(group, cost=cost_of(request), caller=caller, weight=request.weight, priority=request.priority)
        full = len(waiting) > self._max_queue and self._num_queued() > self._max_queue  # the second takes long to tell
        if full and waiting.num_of(caller) * waiting.num_callers > self._max_queue:
            self._leave_queue(group)
            raise Overloaded("The queue is full.", retry_after=self._pace.retry_after(len(self._waiting)))

    def _leave_queue(self, group: Group | Encoding) -> None:
        self._waiting.remove(group)
        if isinstance(group, Group):
            group.end()

    def _admit(self) -> None:
        for _ in range(len(self._waiting) - self._num_queued()):
            group = self._waiting.pop()
            group.queue_seconds = self._clock() - group.queued_at
            if isinstance(group, Encoding):
                self._encodings.add(group)
            else:
                self._find_sources(group)
            self._room.admit(group)

    def _grow(self) -> None:
        """Reserve more for answers that have come to the end of what was; those that have to wait do not speak."""
        self._short = [
            sequence
            for sequence in self._room.growing
            if sequence.num_held_tokens > sequence.num_reserved_tokens and not self._room.grow(sequence)
        ]

    def _find_sources(self, group: Group) -> None:
        for sequence in group.sequences:
            if sequence.leader is None:
                self._room.kept.find_source(sequence, self._running)
                self._running.append(sequence)

    def _num_queued(self) -> int:
        """Waiting requests that the next step will not admit."""
        if any(not sequence.finished for sequence in self._short):
            return len(self._waiting)
        return len(self._waiting) - self._room.num_fitting(self._waiting)

    # Steps

    def _begin(self) -> Step:
        """A step with what has to come before its rows."""
        copies = [(source, sequence.slot) for source, sequence in self._copies if not sequence.finished]
        truncations = [(each.slot, each.num_read_tokens) for each in self._just_ended if each in self._room.kept]
        if self._guessed and not self._guessed.finished:
            truncations.append((self._guessed.slot, self._guessed.num_computed_tokens))
        self._copies, self._guessed, self._just_ended = [], None, []
        return Step(copies, self._room.take_frees(), truncations, started=self._clock())

    def _read(self, step: Step, prefilling: list[Sequence], room: int) -> None:
        """Fill the step with prompts and inputs; which of them goes first, and may be cut, changes every time."""
        self._encodings_first = bool(self._encodings) and not (prefilling and self._encodings_first)
        if self._encodings_first:
            step.readings = self._encodings.plan(max(room, LEAST_COST), self._chunk_of)
            room -= sum(reading.cost for reading in step.readings)
        num_read = self._add_prompts(step, prefilling, room, may_cut=not self._encodings_first)
        if not self._encodings_first:
            step.readings = self._encodings.plan(room - num_read, None)

    def _add_prompts(self, step: Step, prefilling: list[Sequence], room: int, *, may_cut: bool) -> int:
        """Fill the step with prompt tokens and tell how many; only the oldest prompt may be cut."""
        whole_room = room
        for age, sequence in enumerate(prefilling):
            remaining = sequence.num_prompt_tokens - max(sequence.num_computed_tokens, sequence.num_shared_tokens)
            oldest = age == 0 and may_cut
            if not oldest and len(sequence.inputs) + remaining > room:
                continue
            count = self._chunk_of(remaining, room) if oldest and not sequence.inputs else remaining
            if not self._room.share(step, sequence, prefilling):
                continue
            if sequence.inputs:
                step.inputs.append((sequence.slot, sequence.inputs, sequence.group.request.adapter))
            step.add_row(sequence, count)
            room -= len(sequence.inputs) + count
        return whole_room - room

    def _chunk_of(self, remaining: int, room: int) -> int:
        """How much of a prompt to read now, such that neither this chunk nor what is left is smaller than allowed."""
        least = self._info.min_prompt_chunk
        count = max(least, min(room, remaining - least))
        whole = remaining <= room or remaining - count < least or not self._info.chunked_prefill
        return remaining if whole else count

    # Results

    def _take_stock(self, step: Step) -> None:
        """Count what a step has computed, and learn from how long it took."""
        seconds = self._clock() - step.started
        self._pace.work(seconds)
        self._num_steps += bool(step.rows or step.readings)
        answers, num_read = 0, sum(reading.cost for reading in step.readings)
        for row, sequence in zip(step.rows, step.sequences, strict=True):
            sequence.num_computed_tokens += 1 if row.guessed else len(row.tokens)
            if row.position >= sequence.num_prompt_tokens:
                answers += 1
                continue
            num_read += len(sequence.inputs) + len(row.tokens)
            if not sequence.finished:
                self._num_prompt_tokens += len(sequence.inputs) or len(row.tokens)
        self._num_prompt_tokens += sum(len(reading.row.tokens) for reading in step.readings)
        if not step.guesses:
            self._pieces.learn(answers, num_read, seconds)

    def _release(self, sequence: Sequence) -> None:
        """End a sequence; its contents stay readable for the copies that the next step begins with, or longer."""
        sequence.finished = True
        self._room.release(sequence)
        self._just_ended.append(sequence)
        sequence.group.num_unfinished -= 1
        if sequence.group.num_unfinished == 0:
            sequence.group.end()
            self._pace.end()

    def _release_encoding(self, encoding: Encoding) -> None:
        encoding.finished = True
        self._room.release(encoding)
        self._pace.end()
