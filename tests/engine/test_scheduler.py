"""The scheduler's rules, one by one; test_scheduler_stateful.py tries them all together."""

import gc

import pytest

from arriero.compute import RunnerInfo, Want
from arriero.core import Beams, EncodingRequest, Finished, GenerationRequest, Sampling, Token
from arriero.engine.local import execute
from arriero.engine.scheduler import Scheduler
from arriero.engine.sequence import Group, Sequence
from arriero.engine.step import Results
from arriero.errors import ContextOverflow, InvalidRequest, Overloaded
from arriero.runners.scripted import ScriptedRunner

END = 0


def info(**changes) -> RunnerInfo:
    values = {"num_slots": 4, "context": 100, "vocab_size": 50, "bytes_per_token": 8, "invariant": True}
    return RunnerInfo(**(values | changes))


def make(*, token_budget=400, max_queue=10, chunk=16, chunk_beside_decode=4, clock=lambda: 0.0, **changes) -> Scheduler:
    return Scheduler(
        info(**changes),
        token_budget=token_budget,
        max_queue=max_queue,
        chunk=chunk,
        chunk_beside_decode=chunk_beside_decode,
        clock=clock,
    )


def ask(*lengths: int, max_tokens=10, n=1, **options) -> GenerationRequest:
    """A request whose prompts have these lengths; every prompt says another token."""
    prompts = tuple((place + 1,) * length for place, length in enumerate(lengths))
    return GenerationRequest(id="r", prompts=prompts, max_tokens=max_tokens, num_choices=n, **options)


def advance(scheduler, token=7):
    """One step in which every draw gives the same token; the step and what came of it."""
    step = scheduler.schedule()
    return step, scheduler.update(step, Results([token] * len(step.draws)))


def lengths(step) -> list[int]:
    return [len(row.tokens) for row in step.rows]


# What a request goes through


def test_a_request_from_prompt_to_last_token():
    scheduler = make()
    group = scheduler.submit(ask(3, max_tokens=2))
    step, events = advance(scheduler, 8)
    assert [(row.slot, list(row.tokens), row.position, row.want) for row in step.rows] == [(0, [1, 1, 1], 0, Want.LAST)]
    assert events == [(group, Token(0, 8))]
    step, events = advance(scheduler, 9)
    assert [(row.slot, list(row.tokens), row.position, row.want) for row in step.rows] == [(0, [8], 3, Want.LAST)]
    assert events == [(group, Token(0, 9)), (group, Finished(0, "length", 2))]
    step = scheduler.schedule()
    assert (step.frees, step.rows) == ([0], [])
    assert scheduler.update(step, Results([])) == []
    assert scheduler.schedule() is None


def test_the_end_token_finishes_without_being_told():
    scheduler = make()
    group = scheduler.submit(ask(3, end_token_ids=frozenset({END})))
    advance(scheduler, 8)
    assert advance(scheduler, END)[1] == [(group, Finished(0, "stop", 2, ending=Token(0, END)))]


def test_the_end_token_is_a_token_when_it_does_not_count():
    scheduler = make()
    group = scheduler.submit(ask(3))
    assert advance(scheduler, END)[1] == [(group, Token(0, END))]


class Counter:
    """A constraint that has enough after some tokens."""

    def __init__(self, left):
        self.left = left

    def accept(self, token):
        self.left -= 1
        return self.left == 0

    def copy(self):
        return Counter(self.left)


def test_a_constraint_finishes_each_choice_by_itself():
    scheduler = make()
    group = scheduler.submit(ask(3, n=2), Counter(2))
    assert advance(scheduler)[1] == [(group, Token(0, 7)), (group, Token(1, 7))]
    assert advance(scheduler)[1] == [
        (group, Token(0, 7)),
        (group, Finished(0, "stop", 2)),
        (group, Token(1, 7)),
        (group, Finished(1, "stop", 2)),
    ]


# Prompts and steps


def test_a_long_prompt_is_read_in_chunks():
    scheduler = make(chunk=16)
    scheduler.submit(ask(40))
    steps = [advance(scheduler) for _ in range(3)]
    assert [(lengths(step), step.rows[0].position, step.rows[0].want) for step, _ in steps] == [
        ([16], 0, Want.NOTHING),
        ([16], 16, Want.NOTHING),
        ([8], 32, Want.LAST),
    ]
    assert [len(events) for _, events in steps] == [0, 0, 1]


@pytest.mark.parametrize(
    ("length", "chunk", "pieces"),
    [(17, 16, [15, 2]), (34, 16, [16, 16, 2]), (33, 16, [16, 15, 2]), (3, 2, [3]), (5, 1, [2, 3]), (1, 16, [1])],
)
def test_no_piece_of_a_prompt_is_smaller_than_the_runner_allows(length, chunk, pieces):
    scheduler = make(chunk=chunk, min_prompt_chunk=2)
    scheduler.submit(ask(length, max_tokens=1))
    for piece in pieces:
        assert lengths(advance(scheduler)[0]) == [piece]


def test_a_runner_that_cannot_take_chunks_gets_prompts_whole():
    scheduler = make(chunk=16, chunked_prefill=False)
    scheduler.submit(ask(40))
    scheduler.submit(ask(10))
    assert lengths(advance(scheduler)[0]) == [40]


def test_chunks_are_smaller_beside_decoding():
    scheduler = make(chunk=16, chunk_beside_decode=4)
    scheduler.submit(ask(3))
    advance(scheduler)
    scheduler.submit(ask(10))
    assert [lengths(advance(scheduler)[0]) for _ in range(4)] == [[1, 4], [1, 4], [1, 2], [1, 1]]


def test_short_prompts_share_a_step():
    scheduler = make(chunk=16)
    for length in (5, 6, 5, 5):
        scheduler.submit(ask(length))
    assert lengths(scheduler.schedule()) == [5, 6, 5]


def test_only_the_oldest_prompt_is_cut_and_shorter_ones_may_join_it():
    scheduler = make(chunk=16, chunk_beside_decode=16)
    for length in (20, 30, 7):
        scheduler.submit(ask(length, max_tokens=1))
    steps = [[(row.slot, len(row.tokens)) for row in advance(scheduler)[0].rows] for _ in range(4)]
    assert steps == [[(0, 16)], [(0, 4), (2, 7)], [(1, 16)], [(1, 14)]]


def test_everybody_decodes_in_every_step():
    scheduler = make(chunk_beside_decode=4)
    scheduler.submit(ask(3, 3, 3, max_tokens=30))
    advance(scheduler)
    scheduler.submit(ask(60))
    for _ in range(15):
        assert lengths(advance(scheduler)[0]) == [1, 1, 1, 4]


# Choices


def test_a_prompt_is_read_once_for_all_its_choices():
    scheduler = make()
    group = scheduler.submit(ask(5, n=3, max_tokens=3, sampling=Sampling(seed=3)))
    step = scheduler.schedule()
    assert lengths(step) == [5]
    assert [(draw.row, draw.choice, draw.position) for draw in step.draws] == [(0, 0, 5), (0, 1, 5), (0, 2, 5)]
    assert scheduler.update(step, Results([11, 12, 13])) == [(group, Token(index, 11 + index)) for index in range(3)]
    step = scheduler.schedule()
    assert step.copies == [(0, 1), (0, 2)]
    assert [(row.slot, list(row.tokens), row.position) for row in step.rows] == [
        (0, [11], 5),
        (1, [12], 5),
        (2, [13], 5),
    ]
    assert scheduler.stats().prompt_tokens == 5


def test_choices_are_numbered_prompt_by_prompt():
    scheduler = make()
    scheduler.submit(ask(2, 3, n=2))
    step = scheduler.schedule()
    assert [(draw.row, draw.choice) for draw in step.draws] == [(0, 0), (0, 1), (1, 2), (1, 3)]


def test_a_choice_that_is_over_at_once_still_lends_its_slot_to_the_others():
    """The first choice ends with its first token: its slot must be copied before it is freed or used again."""
    scheduler = make(num_slots=2)
    scheduler.submit(ask(5, n=2, end_token_ids=frozenset({END})))
    scheduler.submit(ask(2))
    step = scheduler.schedule()
    scheduler.update(step, Results([END, 9]))
    step = scheduler.schedule()
    assert (step.copies, step.frees) == ([(0, 1)], [0])
    assert [(row.slot, list(row.tokens), row.position) for row in step.rows] == [(1, [9], 5), (0, [1, 1], 0)]


def test_a_choice_that_is_over_at_once_needs_no_copy():
    scheduler = make()
    scheduler.submit(ask(5, n=2, max_tokens=1))
    advance(scheduler)
    step = scheduler.schedule()
    assert (step.copies, sorted(step.frees), step.rows) == ([], [0, 1], [])


# Admission


def test_a_request_is_admitted_whole_or_not_at_all():
    scheduler = make(num_slots=4)
    scheduler.submit(ask(2, 2))
    scheduler.submit(ask(2, n=3))
    assert len(advance(scheduler)[0].rows) == 2
    stats = scheduler.stats()
    assert (stats.running, stats.waiting) == (2, 1)


def test_tokens_are_reserved_for_prompt_and_answer_of_every_choice():
    scheduler = make(token_budget=100)
    scheduler.submit(ask(5, 10, n=2, max_tokens=10))
    advance(scheduler)
    assert scheduler.stats().reserved_tokens == (15 + 20) * 2
    scheduler.submit(ask(20, max_tokens=11))
    advance(scheduler)
    assert scheduler.stats().waiting == 1


def test_nobody_overtakes_the_first_in_the_queue():
    scheduler = make(num_slots=4)
    scheduler.submit(ask(2, max_tokens=3))
    advance(scheduler)
    wide = scheduler.submit(ask(2, n=4))
    narrow = scheduler.submit(ask(2))
    advance(scheduler)
    advance(scheduler)
    step = scheduler.schedule()
    assert {sequence.group for sequence in step.drawing} == {wide}
    scheduler.abort(wide)
    assert {sequence.group for sequence in scheduler.schedule().drawing} == {narrow}


def test_a_finished_choice_makes_room_for_others_of_its_request_or_not():
    scheduler = make(num_slots=2)
    scheduler.submit(ask(2, n=2, end_token_ids=frozenset({END})))
    later = scheduler.submit(ask(3))
    scheduler.update(scheduler.schedule(), Results([END, 9]))
    assert later in {sequence.group for sequence in scheduler.schedule().drawing}


REFUSED = {
    "context": (ask(95), ContextOverflow, "max_tokens"),
    "prompt fills the context": (ask(100), ContextOverflow, "prompt"),
    "second prompt": (ask(3, 95), ContextOverflow, "max_tokens"),
    "choices": (ask(3, n=5), InvalidRequest, "n"),
    "prompts times choices": (ask(3, 3, 3, n=2), InvalidRequest, "n"),
    "prompts": (ask(3, 3, 3, 3, 3), InvalidRequest, "prompt"),
    "budget by choices": (ask(60, n=3), ContextOverflow, "n"),
    "budget by answers": (ask(20, 20, 20, max_tokens=50), ContextOverflow, "max_tokens"),
    "budget by prompts": (ask(70, 70, 70, max_tokens=1), ContextOverflow, "prompt"),
    "no prompt": (ask(), InvalidRequest, "prompt"),
    "empty prompt": (ask(3, 0), InvalidRequest, "prompt"),
    "no choice": (ask(3, n=0), InvalidRequest, "n"),
    "negative tokens": (ask(3, max_tokens=-1), InvalidRequest, "max_tokens"),
    "more tokens than may be": (ask(3, max_tokens=5, min_tokens=6), InvalidRequest, "min_tokens"),
    "fewer than no log-probabilities": (ask(3, logprobs=-1), InvalidRequest, "logprobs"),
    "fewer than none of the prompt": (ask(3, prompt_logprobs=-1), InvalidRequest, "prompt_logprobs"),
    "no beam": (ask(3, beams=Beams(num_beams=0)), InvalidRequest, "num_beams"),
    "more beams than slots": (ask(3, beams=Beams(num_beams=5)), InvalidRequest, "num_beams"),
    "more choices than beams": (ask(3, n=3, beams=Beams(num_beams=2)), InvalidRequest, "n"),
    "budget by beams": (ask(60, beams=Beams(num_beams=3)), ContextOverflow, "num_beams"),
    "length penalty": (ask(3, beams=Beams(num_beams=2, length_penalty=11)), InvalidRequest, "length_penalty"),
    "early stopping": (ask(3, beams=Beams(num_beams=2, early_stopping="late")), InvalidRequest, "early_stopping"),
    "biased token": (ask(3, sampling=Sampling(logit_bias=((50, 1.0),))), InvalidRequest, "logit_bias"),
    "unknown token": (GenerationRequest(id="r", prompts=((1, 50),), max_tokens=1), InvalidRequest, "prompt"),
    "negative token": (GenerationRequest(id="r", prompts=((1, -1),), max_tokens=1), InvalidRequest, "prompt"),
    "sampling": (ask(3, sampling=Sampling(top_p=2)), InvalidRequest, "top_p"),
}


@pytest.mark.parametrize(("request_", "error", "param"), REFUSED.values(), ids=REFUSED)
def test_what_can_never_run_is_refused_by_name(request_, error, param):
    scheduler = make(token_budget=200)
    with pytest.raises(error) as caught:
        scheduler.submit(request_)
    assert (type(caught.value), caught.value.param) == (error, param)
    assert scheduler.stats().waiting == 0


def test_what_just_fits_runs():
    scheduler = make(token_budget=400)
    group = scheduler.submit(ask(90, n=4))
    assert scheduler.stats().waiting == 1
    events = []
    while step := scheduler.schedule():
        events += scheduler.update(step, Results([7] * len(step.draws)))
    finished = [event for _, event in events if isinstance(event, Finished)]
    assert finished == [Finished(index, "length", 10) for index in range(4)]
    assert group.num_unfinished == 0


# The queue


def test_a_full_queue_is_an_overload():
    scheduler = make(max_queue=2)
    for _ in range(4 + 2):  # as many as there are slots, which do not count as queueing, and the queue
        scheduler.submit(ask(3))
    with pytest.raises(Overloaded):
        scheduler.submit(ask(3))
    advance(scheduler)
    assert (scheduler.stats().running, scheduler.stats().waiting) == (4, 2)
    with pytest.raises(Overloaded):
        scheduler.submit(ask(3))


def test_without_a_queue_there_is_still_room_for_what_fits():
    scheduler = make(max_queue=0)
    scheduler.submit(ask(3, n=3))
    with pytest.raises(Overloaded):
        scheduler.submit(ask(3, n=2))
    scheduler.submit(ask(3))


def test_retry_after_follows_the_recent_pace():
    now = 0.0
    scheduler = make(max_queue=5, num_slots=1, clock=lambda: now)
    for _ in range(1 + 5):
        scheduler.submit(ask(3, max_tokens=1))
    with pytest.raises(Overloaded) as caught:
        scheduler.submit(ask(3))
    assert caught.value.retry_after == 1.0  # nothing is known yet
    for seconds in (2.0, 2.0, 8.0):
        now += 100.0  # an idle engine says nothing of the pace
        step = scheduler.schedule()
        now += seconds
        scheduler.update(step, Results([7]))
        scheduler.submit(ask(3, max_tokens=1))
        with pytest.raises(Overloaded) as caught:
            scheduler.submit(ask(3))
        if seconds == 2.0:
            assert caught.value.retry_after == pytest.approx(6 * 2.0)
    assert 6 * 2.0 < caught.value.retry_after < 6 * 8.0


def test_retry_after_has_a_limit():
    now = 0.0
    scheduler = make(max_queue=1, num_slots=1, clock=lambda: now)
    scheduler.submit(ask(3, max_tokens=1))
    step = scheduler.schedule()
    now = 500.0
    scheduler.update(step, Results([7]))
    scheduler.submit(ask(3))
    scheduler.submit(ask(3))
    with pytest.raises(Overloaded) as caught:
        scheduler.submit(ask(3))
    assert caught.value.retry_after == 60.0


# Aborts


def idle(scheduler) -> bool:
    stats = scheduler.stats()
    return (stats.waiting, stats.running, stats.reserved_tokens) == (0, 0, 0)


def test_abort_while_waiting():
    scheduler = make()
    group = scheduler.submit(ask(3, n=2))
    scheduler.abort(group)
    assert idle(scheduler)
    assert scheduler.schedule() is None


def test_abort_while_reading_the_prompt():
    scheduler = make(chunk=16)
    group = scheduler.submit(ask(40, n=2))
    advance(scheduler)
    scheduler.abort(group)
    assert idle(scheduler)
    step = scheduler.schedule()
    assert (sorted(step.frees), step.rows) == ([0, 1], [])
    scheduler.update(step, Results([]))
    assert scheduler.schedule() is None


def test_abort_while_decoding_leaves_the_others_alone():
    scheduler = make()
    group, other = scheduler.submit(ask(3)), scheduler.submit(ask(3))
    advance(scheduler)
    scheduler.abort(group)
    step, events = advance(scheduler)
    assert step.frees == [0]
    assert events == [(other, Token(0, 7))]


def test_abort_while_the_step_runs():
    scheduler = make()
    group, other = scheduler.submit(ask(3, n=2)), scheduler.submit(ask(3))
    step = scheduler.schedule()
    scheduler.abort(group)
    assert scheduler.stats().running == 1
    assert scheduler.update(step, Results([7, 7, 7])) == [(other, Token(0, 7))]
    assert scheduler.schedule().copies == []


def test_abort_between_the_first_tokens_and_the_copies():
    scheduler = make()
    group = scheduler.submit(ask(3, n=2))
    advance(scheduler)
    scheduler.abort(group)
    step = scheduler.schedule()
    assert (step.copies, sorted(step.frees), step.rows) == ([], [0, 1], [])


def test_abort_is_harmless_when_there_is_nothing_left():
    scheduler = make()
    group = scheduler.submit(ask(3, max_tokens=1))
    advance(scheduler)
    scheduler.abort(group)
    scheduler.abort(group)
    assert idle(scheduler)
    assert scheduler.schedule().frees == [0]


def test_what_has_ended_is_freed_without_the_garbage_collector():
    """In whatever way it ended; prompts may be long, and the collector comes seldom."""
    gc.collect()
    gc.disable()
    try:
        scheduler = make(max_queue=1)
        runner = ScriptedRunner(vocab_size=50, num_slots=4, context=100, end_token_id=END)
        for request in (
            ask(5, n=3),
            ask(3, 4, beams=Beams(num_beams=2)),
            ask(5, n=2, max_tokens=1),
            ask(5, max_tokens=0),
        ):
            scheduler.submit(request)
            while step := scheduler.schedule():
                scheduler.update(step, execute(runner, step))
        for num_steps in range(3):  # aborted while it waits, while it reads and while it speaks
            group = scheduler.submit(ask(20, n=4))
            for _ in range(num_steps):
                scheduler.update(step := scheduler.schedule(), execute(runner, step))
            scheduler.submit(ask(1, n=4))
            with pytest.raises(Overloaded):
                scheduler.submit(ask(1, n=4))
            scheduler.abort(group)
            while step := scheduler.schedule():
                scheduler.update(step, execute(runner, step))
        del group
        assert [each for each in gc.get_objects() if isinstance(each, Group | Sequence)] == []
    finally:
        gc.enable()


def test_counts():
    scheduler = make(num_slots=2)
    runner = ScriptedRunner(vocab_size=50, num_slots=2, context=100, end_token_id=END)
    scheduler.submit(ask(20, n=2, max_tokens=3))
    scheduler.submit(ask(4, max_tokens=50, end_token_ids=frozenset({END})))
    while step := scheduler.schedule():
        scheduler.update(step, execute(runner, step))
    stats = scheduler.stats()
    assert stats.prompt_tokens == 24
    assert stats.generated_tokens == 2 * 3 + 5
    assert stats.num_slots == 2
    assert idle(scheduler)


# Adapters


def test_every_row_of_a_request_has_its_adapter():
    scheduler = make(num_adapters=2)
    scheduler.submit(ask(3, adapter=2, n=2))
    scheduler.submit(ask(30, adapter=1, n=2))
    adapters = {}
    for _ in range(8):
        step, _ = advance(scheduler)
        for row, sequence in zip(step.rows, step.sequences, strict=True):
            adapters.setdefault(sequence.group.request.adapter, set()).add(row.adapter)
    assert adapters == {2: {2}, 1: {1}}


@pytest.mark.parametrize("adapter", [-1, 3])
def test_an_adapter_that_is_not_there_is_refused(adapter):
    with pytest.raises(InvalidRequest, match=f"no adapter {adapter}"):
        make(num_adapters=2).submit(ask(3, adapter=adapter))


def test_token_ids_are_those_of_the_adapter():
    scheduler = make(num_adapters=1, vocab_size=50, vocab_sizes=(40, 50))
    known = {"prompts": ((45,),), "max_tokens": 1}
    scheduler.submit(GenerationRequest(id="a", adapter=1, **known))
    with pytest.raises(InvalidRequest, match="below 40"):
        scheduler.submit(GenerationRequest(id="b", **known))
    with pytest.raises(InvalidRequest, match="input 0 must be below 40"):
        make(num_adapters=1, vocab_sizes=(40, 50), hidden_size=4).submit_encoding(
            EncodingRequest(id="c", inputs=((45,),))
        )


# Answers whose length nobody limited


def test_what_is_likely_is_reserved_and_more_as_it_is_needed():
    scheduler = make(token_budget=400)
    scheduler.submit(ask(10, max_tokens=90, likely_tokens=20))
    reserved = []
    for _ in range(90):
        advance(scheduler)
        reserved.append(scheduler.stats().reserved_tokens)
    assert list(dict.fromkeys(reserved)) == [30, 50, 70, 90, 100, 0]


def test_more_of_them_run_at_once_and_wait_for_each_other_when_they_are_long():
    """Three that may come to 100 tokens each, with room for 200: all run at first, the youngest waits, none is lost."""
    scheduler = make(token_budget=200)
    groups = [scheduler.submit(ask(10, max_tokens=90, likely_tokens=20)) for _ in range(3)]
    lengths, waited = dict.fromkeys(groups, 0), set()
    while scheduler.stats().reserved_tokens or scheduler.stats().waiting or not any(lengths.values()):
        step, events = advance(scheduler)
        speaking = {sequence.group for sequence in step.sequences}
        begun = {group for group in groups if lengths[group] and group.num_unfinished}
        waited |= begun - speaking
        assert scheduler.stats().reserved_tokens <= 200
        for group, event in events:
            lengths[group] += isinstance(event, Token)
    assert set(lengths.values()) == {90}
    assert waited
    assert groups[0] not in waited


def test_nobody_is_admitted_while_an_answer_waits_for_room():
    scheduler = make(token_budget=200)
    for _ in range(3):
        scheduler.submit(ask(10, max_tokens=90, likely_tokens=20))
    late = None
    while scheduler.stats().running or scheduler.stats().waiting or late is None:
        advance(scheduler)
        if scheduler._short and late is None:
            late = scheduler.submit(ask(1, max_tokens=1))
        assert not (scheduler._short and late) or late.sequences[0].slot < 0
    assert late.num_unfinished == 0
