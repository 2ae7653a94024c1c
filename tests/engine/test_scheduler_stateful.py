"""Any mix of requests, aborts and steps: nobody gets anything but what it would have got alone."""

import contextlib
import functools
from collections import defaultdict
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from arriero.compute import Row, Want
from arriero.core import Beams, Finished, GenerationRequest, PromptScored, Sampling, Token
from arriero.engine.beams import BeamSearch
from arriero.engine.local import execute
from arriero.engine.processors import processors_of
from arriero.engine.sampling import Draw, sample
from arriero.engine.scheduler import Scheduler
from arriero.engine.scoring import score
from arriero.errors import ContextOverflow, InvalidRequest, Overloaded
from arriero.runners.scripted import ScriptedRunner

CONTEXT = 40
VOCAB_SIZE = 16
END = 0


def logits_after(tokens: list[int]) -> np.ndarray:
    return np.random.default_rng(tokens).normal(size=VOCAB_SIZE).astype(np.float32) * 2


class PrefixRunner(ScriptedRunner):
    """Logits that depend on every token a slot holds, so that one wrong token anywhere shows in the answer.

    The protocol is checked by the scripted runner underneath.
    """

    def __init__(self, num_slots: int) -> None:
        super().__init__(vocab_size=VOCAB_SIZE, num_slots=num_slots, context=CONTEXT, end_token_id=END)

    def step(self, rows):
        super().step(rows)
        wanted = []
        for row in rows:
            tokens = self._slots[row.slot].tokens
            first = {Want.ALL: row.position + 1, Want.LAST: len(tokens), Want.NOTHING: len(tokens) + 1}[row.want]
            wanted += [tokens[:end] for end in range(first, len(tokens) + 1)]
        return np.array([logits_after(tokens) for tokens in wanted]).reshape(-1, VOCAB_SIZE)

    def num_held(self) -> int:
        return sum(len(slot.tokens) for slot in self._slots)


class EnoughOf:
    """A constraint that has enough when it has seen a token twice."""

    def __init__(self, token: int, seen: int = 0) -> None:
        self.token, self.seen = token, seen

    def accept(self, token):
        self.seen += token == self.token
        return self.seen == 2

    def copy(self):
        return EnoughOf(self.token, self.seen)


def constraint_of(request):
    return EnoughOf(int(request.stop_strings[0])) if request.stop_strings else None


def scored_alone(request: GenerationRequest) -> dict[str, list]:
    """What is told of prompts, by definition."""
    if request.prompt_logprobs is None:
        return {}
    scored = [
        (None, *(score(logits_after(prompt[:place]), prompt[place], 2) for place in range(1, len(prompt))))
        for prompt in map(list, request.prompts)
    ]
    return {f"prompt {place}": [PromptScored(place, scores)] for place, scores in enumerate(scored)}


def searched_alone(request: GenerationRequest) -> dict[int, list]:
    """What a beam search gives that keeps no keys and values."""
    answers = defaultdict(list)
    for prompt, tokens in enumerate(request.prompts):
        search = BeamSearch(request, prompt, constraint_of(request), processors_of(request, tokens))
        while not search.decided:
            logits = np.stack([logits_after(beam.tokens) for beam in search.beams])
            rows = {beam.place: row for row, beam in enumerate(search.beams)}
            search.take(search.candidates(logits, rows))
        for event in search.events():
            answers[event.index].append(event)
    return answers


@functools.cache
def alone(request: GenerationRequest) -> dict:
    """What every prompt and every choice gets, token by token, with no scheduler and no slots."""
    answers = scored_alone(request)
    num_choices = len(request.prompts) * request.num_choices
    if request.max_tokens == 0:
        return answers | {index: [Finished(index, "length", 0)] for index in range(num_choices)}
    if request.beams and request.beams.num_beams > 1:
        return answers | searched_alone(request)
    for index in range(num_choices):
        prompt = request.prompts[index // request.num_choices]
        constraint = constraint_of(request)
        processors = processors_of(request, prompt)
        tokens, events, reason, ending = list(prompt), [], None, None
        while not reason:
            draw = Draw(0, request.sampling, index, len(tokens), processors, tokens)
            logits = logits_after(tokens)
            tokens = tokens + sample(logits[None], [draw])
            logprob = None if request.logprobs is None else score(logits, tokens[-1], request.logprobs)
            taken = Token(index, tokens[-1], logprob)
            if taken.id in request.end_token_ids:
                reason, ending = "stop", taken
                continue
            events.append(taken)
            if constraint and constraint.accept(tokens[-1]):
                reason = "stop"
            elif len(tokens) == len(prompt) + request.max_tokens:
                reason = "length"
        answers[index] = [*events, Finished(index, reason, len(tokens) - len(prompt), ending=ending)]
    return answers


BASE = (1, 2, 3, 4) * 5
prompts = st.one_of(
    st.lists(st.integers(1, 4), min_size=1, max_size=30).map(tuple),
    # Many begin alike, and some are the beginnings of others.
    st.builds(
        lambda length, rest: BASE[:length] + tuple(rest),
        st.integers(6, len(BASE)),
        st.lists(st.integers(1, 4), max_size=10),
    ),
)

requests = st.builds(
    GenerationRequest,
    id=st.just("r"),
    prompts=st.lists(prompts, min_size=1, max_size=3).map(tuple),
    max_tokens=st.integers(0, 12),
    likely_tokens=st.sampled_from([None, None, 1, 2, 5]),
    num_choices=st.sampled_from([1, 1, 1, 2, 3]),
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.7, 1.0]),
        top_k=st.sampled_from([0, 5]),
        repetition_penalty=st.sampled_from([1.0, 1.0, 1.5]),
        frequency_penalty=st.sampled_from([0.0, 0.0, 1.5]),
        no_repeat_ngram_size=st.sampled_from([0, 0, 1, 2]),
        seed=st.integers(0, 3),
    ),
    beams=st.one_of(
        st.none(),
        st.none(),
        st.builds(
            Beams,
            num_beams=st.integers(3, 4),
            length_penalty=st.sampled_from([1.0, 0.0, -1.0]),
            early_stopping=st.sampled_from([False, True, "never"]),
        ),
    ),
    logprobs=st.sampled_from([None, None, 0, 3]),
    prompt_logprobs=st.sampled_from([None, None, 2]),
    end_token_ids=st.sampled_from([frozenset(), frozenset({END}), frozenset({END, 1, 2})]),
    stop_strings=st.sampled_from([(), (), ("3",), ("7",)]),
)


class Engine(RuleBasedStateMachine):
    """A scheduler, a runner, and what both may never do."""

    @initialize(
        num_slots=st.integers(1, 6),
        budget=st.integers(CONTEXT, 5 * CONTEXT),
        max_queue=st.integers(0, 5),
        chunk=st.integers(1, 20),
        chunk_beside_decode=st.integers(1, 8),
        least=st.integers(1, 3),
        prefix_tokens=st.sampled_from([0, 20, 100]),
        invariant=st.booleans(),
    )
    def begin(self, num_slots, budget, max_queue, chunk, chunk_beside_decode, least, prefix_tokens, invariant):
        self.least = least
        self.prefix_tokens = prefix_tokens
        self.budget, self.max_queue, self.chunks = budget, max_queue, (chunk, chunk_beside_decode)
        self.runner = PrefixRunner(num_slots)
        self.scheduler = Scheduler(
            replace(self.runner.info, min_prompt_chunk=least, invariant=invariant),
            token_budget=budget,
            max_queue=max_queue,
            chunk=chunk,
            chunk_beside_decode=chunk_beside_decode,
            prefix_tokens=prefix_tokens,
        )
        self.groups = []  # unfinished, in the order they came
        self.sequences = {}  # of the unfinished; groups let go of theirs when they end
        self.ended = []  # what the finished came to, prompt and answer
        self.events = defaultdict(lambda: defaultdict(list))
        self.decoding = set()

    @rule(request=requests)
    def submit(self, request):
        self.ask(request)

    def ask(self, request):
        try:
            group = self.scheduler.submit(request, constraint_of(request))
        except InvalidRequest:
            each = request.beams.num_beams if request.beams else request.num_choices
            num_choices = len(request.prompts) * each
            most = each * sum(len(prompt) + request.max_tokens for prompt in request.prompts)
            longest = max(len(prompt) for prompt in request.prompts) + request.max_tokens
            assert num_choices > self.runner.info.num_slots or most > self.budget or longest > CONTEXT
        except Overloaded:
            assert len(self.groups) >= self.max_queue
            assert self.groups
        else:
            self.groups.append(group)
            self.sequences[group] = group.sequences

    @precondition(lambda self: self.ended)
    @rule(data=st.data(), own=st.lists(st.integers(1, 4), max_size=6), request=requests)
    def go_on(self, data, own, request):
        """A prompt made of another one, its answer and more, as conversations are."""
        told = data.draw(st.sampled_from(self.ended))
        prompt = (*told[: data.draw(st.integers(1, len(told)))], *own)[: CONTEXT - request.max_tokens]
        self.ask(replace(request, prompts=(prompt,)))

    @precondition(lambda self: self.groups)
    @rule(data=st.data())
    def abort(self, data):
        self.drop(data.draw(st.sampled_from(self.groups)))

    @rule()
    def step(self):
        self.advance()

    @precondition(lambda self: self.groups)
    @rule(data=st.data())
    def abort_while_the_step_runs(self, data):
        group = data.draw(st.sampled_from(self.groups))
        self.advance(meanwhile=lambda: self.drop(group))

    @rule(count=st.integers(2, 15))
    def steps(self, count):
        for _ in range(count):
            self.advance()

    def drop(self, group):
        self.scheduler.abort(group)
        self.groups.remove(group)
        self.decoding -= set(self.sequences.pop(group))
        assert not group.sequences
        self.check_answer(group)
        del self.events[group]

    def advance(self, meanwhile=lambda: None):
        step = self.scheduler.schedule()
        if step is None:
            assert not self.groups
            self.use_spare_time()
            return
        self.check_step(step)
        meanwhile()
        drawing = [*step.drawing, *(beam for first in step.expansions for beam in first.group.family(first.prompt))]
        waiting = self.decoding - set(step.sequences)  # for room
        drawing = [sequence for sequence in (*drawing, *waiting) if not sequence.finished]
        for group, event in self.scheduler.update(step, execute(self.runner, step)):
            assert group in self.groups
            heard = self.events[group]
            scored = isinstance(event, PromptScored)
            if isinstance(event, Finished):
                self.check_cached(group, event)
                event = replace(event, cached_tokens=0)
            heard[f"prompt {event.prompt}" if scored else event.index].append(event)
            if not scored and group.request.prompt_logprobs is not None:
                assert f"prompt {event.index // group.request.num_choices}" in heard
        self.decoding = {
            sequence
            for sequence in drawing
            if not sequence.finished and sequence.num_computed_tokens < len(sequence.tokens)
        }
        for group in [group for group in self.groups if group.num_unfinished == 0]:
            self.groups.remove(group)
            self.check_answer(group)
            self.ended.append(tuple(self.sequences.pop(group)[0].tokens))
            assert not group.sequences
            assert self.events.pop(group) == alone(group.request)

    def use_spare_time(self):
        before = self.scheduler.stats()
        if step := self.scheduler.spare():
            (row,) = step.rows
            assert self.least <= len(row.tokens)
            assert self.scheduler.update(step, execute(self.runner, step)) == []
            assert self.scheduler.stats().prompt_tokens == before.prompt_tokens

    def check_step(self, step):
        rows: list[Row] = step.rows
        # Who has begun to speak has one token in every step, but for those whose length nobody limited.
        assert all(sequence.group.request.likely_tokens for sequence in self.decoding - set(step.sequences))
        speaking = self.decoding & set(step.sequences)
        reading = [
            (len(row.tokens), sequence.num_prompt_tokens)
            for row, sequence in zip(rows, step.sequences, strict=True)
            if sequence not in self.decoding
        ]
        assert sum(count for count, _ in reading) <= max(self.chunks[bool(speaking)], 2 * self.least - 1)
        assert all(count >= min(self.least, whole) for count, whole in reading)
        assert rows or step.frees
        # The oldest prompt that is not read yet is read on.
        unread = [
            sequence
            for group in self.groups
            for sequence in group.sequences
            if sequence.slot >= 0 and not sequence.leader and not sequence.finished
            if sequence.num_computed_tokens < sequence.num_prompt_tokens
        ]
        assert not unread or unread[0] in step.sequences
        # Nobody is let in before somebody who came earlier.
        admitted = [group.sequences[0].slot >= 0 for group in self.groups]
        assert admitted == sorted(admitted, reverse=True)

    def check_cached(self, group, event):
        """Some of a prompt is always computed, and all of it where its probabilities are asked for."""
        prompt = group.request.prompts[event.index // group.request.num_choices]
        assert event.cached_tokens <= max(0, len(prompt) - self.least)
        assert not event.cached_tokens or (self.prefix_tokens and group.request.prompt_logprobs is None)

    def check_answer(self, group):
        """What was said is a beginning of what is said alone, whenever the request is cut off."""
        for index, events in self.events[group].items():
            assert events == alone(group.request)[index][: len(events)]

    @invariant()
    def nothing_is_given_twice(self):
        if not hasattr(self, "scheduler"):
            return
        stats = self.scheduler.stats()
        holding = [s for group in self.groups for s in group.sequences if s.slot >= 0 and not s.finished]
        assert len({sequence.slot for sequence in holding}) == len(holding) == stats.running
        assert stats.reserved_tokens == sum(sequence.num_reserved_tokens for sequence in holding) <= self.budget
        assert stats.kept_tokens <= min(self.prefix_tokens, self.budget - stats.reserved_tokens)
        assert stats.waiting == sum(group.sequences[0].slot < 0 for group in self.groups)

    def teardown(self):
        """Everybody comes to an end, and then nothing is held."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(10_000):
            if not self.groups:
                break
            self.advance()
        assert not self.groups
        self.advance()
        assert self.scheduler.schedule() is None
        stats = self.scheduler.stats()
        assert (stats.waiting, stats.running, stats.reserved_tokens) == (0, 0, 0)
        # What is left is what is kept for later prompts.
        assert stats.kept_tokens or self.runner.num_held() == 0


Engine.TestCase.settings = settings(max_examples=250, stateful_step_count=30, deadline=None)
TestEngine = Engine.TestCase


def test_the_oracle_is_not_trivial():
    """Answers differ by prompt, choice and seed, and end in every way; else equal answers would prove nothing."""
    base = {"id": "r", "max_tokens": 12, "num_choices": 3, "prompts": ((1, 2, 3), (1, 2, 4))}
    said = alone(GenerationRequest(**base))
    texts = [tuple(event.id for event in events if isinstance(event, Token)) for events in said.values()]
    assert len(set(texts)) == 6
    assert all(isinstance(events[-1], Finished) for events in said.values())
    stopped = alone(GenerationRequest(**base, stop_strings=("3",), end_token_ids=frozenset({END})))
    assert {events[-1].reason for events in stopped.values()} == {"stop", "length"}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            GenerationRequest,
            id=st.just("r"),
            prompts=st.lists(
                st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), min_size=1, max_size=2
            ).map(tuple),
            max_tokens=st.integers(6, 12),
            likely_tokens=st.sampled_from([1, 2, 3, None]),
            num_choices=st.integers(1, 2),
            sampling=st.builds(Sampling, temperature=st.sampled_from([0.0, 1.0]), seed=st.integers(0, 3)),
        ),
        min_size=2,
        max_size=8,
    ),
    st.integers(20, 60),
)
def test_where_room_is_short_some_wait_and_all_come_to_their_ends(asked, budget):
    runner = PrefixRunner(8)
    scheduler = Scheduler(runner.info, token_budget=budget, max_queue=10, chunk=8)
    groups, events = [], defaultdict(lambda: defaultdict(list))
    for request in asked:
        with contextlib.suppress(ContextOverflow):
            groups.append(scheduler.submit(request))
    while step := scheduler.schedule():
        assert step.rows or step.frees  # somebody always goes on
        for group, event in scheduler.update(step, execute(runner, step)):
            events[group][event.index].append(event)
        assert scheduler.stats().reserved_tokens <= budget
    for group in groups:
        assert events[group] == alone(group.request)
    assert scheduler.stats().reserved_tokens == 0


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 4), min_size=1, max_size=6),  # what is said
            st.integers(0, 2),  # tokens of the history that are rendered otherwise
            st.integers(2, 8),  # tokens of the answer
            st.integers(0, 3),  # pieces of it that are read in spare time
        ),
        min_size=2,
        max_size=5,
    ),
    st.integers(1, 3),
    st.booleans(),
)
def test_conversations_go_on_from_answers(turns, least, invariant):
    runner = PrefixRunner(3)
    info = replace(runner.info, min_prompt_chunk=least, invariant=invariant)
    scheduler = Scheduler(info, token_budget=100, max_queue=10, chunk=8, prefix_tokens=60)
    told: tuple[int, ...] = BASE[:9]
    for said, num_changed, max_tokens, num_pieces in turns:
        prompt = (*told[: len(told) - num_changed], *said)[: CONTEXT - max_tokens]
        request = GenerationRequest(
            id="r", prompts=(prompt,), max_tokens=max_tokens, sampling=Sampling(temperature=1), logprobs=2
        )
        [sequence] = scheduler.submit(request).sequences
        events = []
        while step := scheduler.schedule():
            events += [event for _, event in scheduler.update(step, execute(runner, step))]
        events[-1] = replace(events[-1], cached_tokens=0)
        assert events == alone(request)[0]
        for _ in range(num_pieces):
            if step := scheduler.spare():
                assert len(step.rows[0].tokens) >= least
                scheduler.update(step, execute(runner, step))
        told = tuple(sequence.tokens)
