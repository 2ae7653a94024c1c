"""Which sequences run in a step, and what the sampled tokens mean for them: continuous batching without tensors.

    while step := scheduler.schedule():
        tokens = ...                       # the runner computes the step, the sampler draws
        events = scheduler.update(step, tokens)

Rules:

- **First come, first served.** Requests are admitted in the order they came, whole (a slot and a reservation of
  prompt plus `max_tokens` for every choice) or not yet. Nobody overtakes: while the first in the queue does not
  fit, nobody behind it is admitted. So it never starves: whoever runs ends within its own `max_tokens`, and the
  engine empties towards it. The price is a slot that may idle for a while beside a wide request.
- **Everybody who speaks goes on speaking.** Every decoding sequence has one token in every step.
- **Prompts share what is left.** A step reads at most `chunk` prompt tokens, `chunk_beside_decode` while somebody
  decodes, so that a long prompt does not stall running answers. The oldest prompt goes first and is the only one
  that may be cut (never into pieces below the runner's `min_prompt_chunk`, even if that takes a few tokens more);
  younger ones join it as rows of their own if they fit whole.
- **A prompt is read once.** Its first choice reads it, the others copy that slot and draw from the same logits.

The scheduler knows the runner by its `RunnerInfo` alone. It has no threads and no locks: `arriero.engine.local`
sees to it that one thread at a time is here.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from arriero.core import (
    Constraint,
    EngineStats,
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    Row,
    RunnerInfo,
    Token,
    Want,
)
from arriero.engine import sampling
from arriero.engine.sampling import Draw
from arriero.engine.sequence import Group, Sequence, group_of
from arriero.errors import ContextOverflow, InvalidRequest, Overloaded

FADE = 0.9
"""How much each request that ends leaves of what is known of earlier ones."""

LONGEST_RETRY_AFTER = 60.0


@dataclass(slots=True)
class Step:
    """What the runner is to do next: the copies at once, then the frees, then the rows; then the draws."""

    copies: list[tuple[int, int]]
    """(source slot, destination slot)."""
    frees: list[int]
    rows: list[Row] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    """What to sample from the rows' logits."""
    sequences: list[Sequence] = field(default_factory=list)
    """Whose rows these are, in the order of `rows`."""
    drawing: list[Sequence] = field(default_factory=list)
    """Whose draws these are, in the order of `draws`."""
    num_logits: int = 0
    """Rows of logits that the runner will return."""
    started: float = 0.0
    """When it was planned, by the scheduler's clock."""


class Scheduler:
    """Continuous batching over the slots of one runner."""

    def __init__(
        self,
        info: RunnerInfo,
        *,
        token_budget: int,
        max_queue: int,
        chunk: int = 512,
        chunk_beside_decode: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`token_budget` bounds the tokens that admitted requests may come to hold; `max_queue` the waiting requests.

        `clock` (seconds) serves only to estimate when an overloaded engine may have room again.
        """
        self._info = info
        self._token_budget = token_budget
        self._max_queue = max_queue
        self._chunk = chunk
        self._chunk_beside_decode = chunk_beside_decode
        self._clock = clock

        self._waiting: deque[Group] = deque()
        self._running: list[Sequence] = []  # oldest first; followers join when their leader has read the prompt
        self._free_slots = list(range(info.num_slots))  # a heap: low slots first keeps the used memory together
        self._reserved_tokens = 0
        self._copies: list[tuple[int, Sequence]] = []  # what the next step must begin with
        self._frees: list[int] = []

        self._num_steps = 0
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0
        self._busy_seconds = 0.0  # these two fade as requests end; their ratio is the recent pace
        self._num_ended = 0.0

    def submit(self, request: GenerationRequest, constraint: Constraint | None = None) -> Group:
        """Queue a request; the group it returns comes back in the events and serves to abort.

        Every choice watches itself with its own copy of `constraint`.

        Raises:
            InvalidRequest: a parameter makes no sense, or there are more choices than slots.
            ContextOverflow: it asks for more tokens than the context or the budget can ever hold.
            Overloaded: it would have to wait, and `max_queue` requests are waiting already.
        """
        self._check(request)
        group = group_of(request, constraint)
        self._waiting.append(group)
        if self._num_queued() > self._max_queue:
            self._waiting.pop()
            raise Overloaded("The queue is full.", retry_after=self._retry_after())
        return group

    def abort(self, group: Group) -> None:
        """Forget a request, whatever it was doing; its slots and reservation are free at once.

        A step that is being computed may go on: its results for this request are ignored.
        """
        if group in self._waiting:
            self._waiting.remove(group)
            return
        for sequence in group.sequences:
            if not sequence.finished:
                self._release(sequence)
        self._running = [sequence for sequence in self._running if not sequence.finished]

    def schedule(self) -> Step | None:
        """Plan the next step; None when there is nothing to do until a request comes."""
        self._admit()
        if not self._running and not self._frees:
            return None
        copies = [(source, sequence.slot) for source, sequence in self._copies if not sequence.finished]
        step = Step(copies, self._frees, started=self._clock())
        self._copies, self._frees = [], []
        prefilling = []
        for sequence in self._running:
            if sequence.num_computed_tokens < sequence.num_prompt_tokens:
                prefilling.append(sequence)
            else:
                self._add_row(step, sequence, 1)
        self._add_prompts(step, prefilling, self._chunk_beside_decode if step.rows else self._chunk)
        return step

    def update(self, step: Step, tokens: list[int]) -> list[tuple[Group, Event]]:
        """Take in what the step's draws gave, one token each; what happened, in order.

        Sequences that finish leave their slots at once, for the next `schedule`.
        """
        self._num_steps += bool(step.rows)
        self._busy_seconds += self._clock() - step.started
        for row, sequence in zip(step.rows, step.sequences, strict=True):
            sequence.num_computed_tokens += len(row.tokens)
            if row.position < sequence.num_prompt_tokens:
                self._num_prompt_tokens += len(row.tokens)
        events: list[tuple[Group, Event]] = []
        for sequence, token in zip(step.drawing, tokens, strict=True):
            if sequence.finished:  # aborted while the step ran
                continue
            self._take(sequence, token, events)
            if sequence.leader:
                self._fork(sequence, sequence.leader)
        self._running = [sequence for sequence in self._running if not sequence.finished]
        return events

    def stats(self) -> EngineStats:
        """Counts as of now."""
        return EngineStats(
            waiting=len(self._waiting),
            running=self._info.num_slots - len(self._free_slots),
            num_slots=self._info.num_slots,
            steps=self._num_steps,
            prompt_tokens=self._num_prompt_tokens,
            generated_tokens=self._num_generated_tokens,
            reserved_tokens=self._reserved_tokens,
        )

    # Admission

    def _admit(self) -> None:
        for _ in range(len(self._waiting) - self._num_queued()):
            group = self._waiting.popleft()
            for sequence in group.sequences:
                sequence.slot = heapq.heappop(self._free_slots)
                self._reserved_tokens += sequence.num_reserved_tokens
            self._running.extend(sequence for sequence in group.sequences if sequence.leader is None)

    def _num_queued(self) -> int:
        """Waiting requests that the next step will not admit."""
        slots = len(self._free_slots)
        tokens = self._token_budget - self._reserved_tokens
        for num_admitted, group in enumerate(self._waiting):
            slots -= len(group.sequences)
            tokens -= group.num_reserved_tokens
            if slots < 0 or tokens < 0:
                return len(self._waiting) - num_admitted
        return 0

    def _check(self, request: GenerationRequest) -> None:
        """Raise what is wrong with a request however empty the engine is."""
        sampling.check(request.sampling)
        prompts, num_choices, max_tokens = request.prompts, request.num_choices, request.max_tokens
        if not prompts or not all(prompts):
            raise InvalidRequest("A prompt needs at least one token.", param="prompt")
        if num_choices < 1:
            raise InvalidRequest("n must be at least 1.", param="n")
        if max_tokens < 1:
            raise InvalidRequest("max_tokens must be at least 1.", param="max_tokens")
        if any(min(prompt) < 0 or max(prompt) >= self._info.vocab_size for prompt in prompts):
            raise InvalidRequest(f"A prompt's token ids must be below {self._info.vocab_size}.", param="prompt")
        num_slots = self._info.num_slots
        if len(prompts) * num_choices > num_slots:
            raise InvalidRequest(
                f"{len(prompts)} prompts with {num_choices} choices each are more than the {num_slots} answers "
                "that this model gives at once.",
                param="prompt" if len(prompts) > num_slots else "n",
            )
        self._check_lengths([len(prompt) for prompt in prompts], num_choices, max_tokens)

    def _check_lengths(self, lengths: list[int], num_choices: int, max_tokens: int) -> None:
        context = self._info.context
        longest = max(lengths)
        if longest + max_tokens > context:
            raise ContextOverflow(
                f"This model's context is {context} tokens, but the request asks for {longest + max_tokens}: "
                f"{longest} in the prompt and {max_tokens} in the answer.",
                param="prompt" if longest >= context else "max_tokens",
            )
        total = (sum(lengths) + len(lengths) * max_tokens) * num_choices
        if total > self._token_budget:
            alone = total // num_choices
            param = (
                "n" if alone <= self._token_budget else "prompt" if sum(lengths) >= self._token_budget else "max_tokens"
            )
            raise ContextOverflow(
                f"The request may come to {total} tokens over all its prompts and choices; "
                f"this server holds {self._token_budget} at once.",
                param=param,
            )

    def _retry_after(self) -> float:
        """Seconds in which, at the recent pace, as many requests end as are waiting now; between 1 and 60."""
        pace = self._busy_seconds / self._num_ended if self._num_ended else 0.0
        return min(max(1.0, len(self._waiting) * pace), LONGEST_RETRY_AFTER)

    # Steps

    def _add_prompts(self, step: Step, prefilling: Iterable[Sequence], room: int) -> None:
        """Fill the step with prompt tokens; only the oldest prompt may be cut."""
        for age, sequence in enumerate(prefilling):
            remaining = sequence.num_prompt_tokens - sequence.num_computed_tokens
            if age == 0:
                count = self._chunk_of(remaining, room)
            elif remaining <= room:
                count = remaining
            else:
                continue
            self._add_row(step, sequence, count)
            room -= count

    def _chunk_of(self, remaining: int, room: int) -> int:
        """How much of a prompt to read now, such that neither this chunk nor what is left is smaller than allowed."""
        least = self._info.min_prompt_chunk
        count = max(least, min(room, remaining - least))
        whole = remaining <= room or remaining - count < least or not self._info.chunked_prefill
        return remaining if whole else count

    def _add_row(self, step: Step, sequence: Sequence, count: int) -> None:
        """Give a sequence's next `count` tokens to the step, and draw if they are all it has."""
        start = sequence.num_computed_tokens
        complete = start + count == len(sequence.tokens)
        tokens = sequence.tokens[start : start + count]
        step.rows.append(Row(sequence.slot, tokens, start, Want.LAST if complete else Want.NOTHING))
        step.sequences.append(sequence)
        if complete:
            row = step.num_logits
            step.num_logits += 1
            self._add_draw(step, row, sequence)
            if start < sequence.num_prompt_tokens:
                for follower in sequence.followers:
                    self._add_draw(step, row, follower)

    def _add_draw(self, step: Step, row: int, sequence: Sequence) -> None:
        request = sequence.group.request
        step.draws.append(Draw(row, request.sampling, sequence.index, len(sequence.tokens)))
        step.drawing.append(sequence)

    # Results

    def _take(self, sequence: Sequence, token: int, events: list[tuple[Group, Event]]) -> None:
        """Append a sampled token to its sequence, and end the sequence if this was its last."""
        group, request = sequence.group, sequence.group.request
        self._num_generated_tokens += 1
        sequence.tokens.append(token)
        reason: FinishReason | None = None
        if token in request.end_token_ids:
            reason = "stop"
        else:
            events.append((group, Token(sequence.index, token)))
            if sequence.constraint and sequence.constraint.accept(token):
                reason = "stop"
            elif sequence.num_sampled_tokens == request.max_tokens:
                reason = "length"
        if reason:
            events.append((group, Finished(sequence.index, reason, sequence.num_sampled_tokens)))
            self._release(sequence)

    def _fork(self, sequence: Sequence, leader: Sequence) -> None:
        """Let a follower go its own way after its first token: from a copy of its leader's slot."""
        sequence.leader = None
        if not sequence.finished:
            sequence.num_computed_tokens = sequence.num_prompt_tokens
            self._copies.append((leader.slot, sequence))
            self._running.append(sequence)

    def _release(self, sequence: Sequence) -> None:
        """End a sequence; its contents stay readable for the copies that the next step begins with."""
        sequence.finished = True
        heapq.heappush(self._free_slots, sequence.slot)
        self._frees.append(sequence.slot)
        self._reserved_tokens -= sequence.num_reserved_tokens
        group = sequence.group
        group.num_unfinished -= 1
        if group.num_unfinished == 0:
            self._num_ended = (self._num_ended + 1) * FADE
            self._busy_seconds *= FADE
