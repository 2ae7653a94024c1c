"""What one prompt may take over from another; test_scheduler_stateful.py tries the rules together."""

import pytest

from arriero.compute import RunnerInfo
from arriero.core import Beams, Finished, GenerationRequest
from arriero.engine.scheduler import Scheduler
from arriero.engine.step import Results

SYSTEM = tuple(range(20))


def make(*, num_slots=4, token_budget=400, prefix_tokens=200, chunk=64, **changes) -> Scheduler:
    info = RunnerInfo(
        num_slots=num_slots, context=100, vocab_size=50, bytes_per_token=8, invariant=True, min_prompt_chunk=2
    )
    for name, value in changes.items():
        object.__setattr__(info, name, value)
    return Scheduler(info, token_budget=token_budget, max_queue=10, chunk=chunk, prefix_tokens=prefix_tokens)


def ask(*prompts, max_tokens=1, **options) -> GenerationRequest:
    return GenerationRequest(id="r", prompts=prompts, max_tokens=max_tokens, **options)


def advance(scheduler):
    step = scheduler.schedule()
    events = scheduler.update(
        step, Results([7] * len(step.draws), scores=[[None] * len(s.tokens) for s in step.scorings])
    )
    return step, [event for _, event in events]


def run(scheduler, request) -> int:
    """Answer one request alone; the prompt tokens that were at hand."""
    scheduler.submit(request)
    while True:
        for event in advance(scheduler)[1]:
            if isinstance(event, Finished):
                return event.cached_tokens


def reads(step) -> list[tuple[int, int, int]]:
    return [(row.slot, row.position, len(row.tokens)) for row in step.rows]


def test_a_conversation_goes_on_in_its_slot():
    scheduler = make()
    run(scheduler, ask(SYSTEM))
    scheduler.submit(ask((*SYSTEM, 30, 31, 32)))
    step, events = advance(scheduler)
    assert (step.copies, step.truncations, step.frees) == ([], [(0, 20), (0, 20)], [])
    assert reads(step) == [(0, 20, 3)]
    assert events[-1].cached_tokens == 20
    assert scheduler.stats().kept_tokens == 23


def rest(scheduler) -> list[tuple[int, int, int]]:
    """What is read in spare time."""
    read = []
    while step := scheduler.spare():
        assert not scheduler.update(step, Results([]))
        read += reads(step)
    return read


def test_an_answer_is_read_as_a_prompt_in_spare_time():
    scheduler = make()
    run(scheduler, ask(SYSTEM, max_tokens=20))
    assert scheduler.spare().truncations == [(0, 20)]
    assert rest(scheduler) == [(0, 20, 16), (0, 36, 4)]
    assert (scheduler.stats().kept_tokens, scheduler.stats().prompt_tokens) == (40, 20)
    scheduler.submit(ask((*SYSTEM, *[7] * 20, 30, 31, 32)))
    step, events = advance(scheduler)
    assert (reads(step), step.copies) == ([(0, 40, 3)], [])
    assert events[-1].cached_tokens == 40


def test_who_comes_before_an_answer_is_read_shares_what_was():
    scheduler = make()
    run(scheduler, ask(SYSTEM, max_tokens=20))
    scheduler.update(scheduler.spare(), Results([]))
    assert run(scheduler, ask((*SYSTEM, *[7] * 20, 30, 31, 32))) == 36


def test_an_answer_is_shared_as_far_as_it_was_said():
    scheduler = make()
    run(scheduler, ask(SYSTEM, max_tokens=20))
    rest(scheduler)
    assert run(scheduler, ask((*SYSTEM, *[7] * 11, 30, 31, 32))) == 31


def test_answers_that_no_prompt_can_hold_on_to_are_not_read():
    """For lack of room, or because one token alone is never read as a prompt."""
    scheduler = make(prefix_tokens=30)
    run(scheduler, ask(SYSTEM, max_tokens=20))
    assert rest(scheduler) == []
    scheduler = make()
    run(scheduler, ask(SYSTEM, max_tokens=1))
    assert rest(scheduler) == []


def test_a_prompt_that_was_aborted_is_not_read_on():
    scheduler = make(chunk=10)
    group = scheduler.submit(ask(SYSTEM))
    advance(scheduler)
    scheduler.abort(group)
    assert scheduler.schedule() is None
    assert rest(scheduler) == []


def test_where_nothing_is_invariant_answers_are_kept_as_they_are():
    scheduler = make(invariant=False)
    run(scheduler, ask(SYSTEM, max_tokens=20))
    assert (rest(scheduler), scheduler.stats().kept_tokens) == ([], 39)
    assert run(scheduler, ask((*SYSTEM, *[7] * 20, 30, 31, 32))) == 39


def test_what_others_may_want_is_copied_and_stays():
    scheduler = make()
    first = (*SYSTEM, *range(30, 38))
    run(scheduler, ask(first))
    scheduler.submit(ask((*SYSTEM, 40, 41, 42)))
    step, events = advance(scheduler)
    assert (step.copies, step.truncations) == ([(0, 1)], [(0, 28), (1, 20)])
    assert reads(step) == [(1, 20, 3)]
    assert events[-1].cached_tokens == 20
    assert run(scheduler, ask((*first, 32, 33))) == 28


def test_a_slot_of_which_little_is_lost_is_taken_over():
    scheduler = make()
    run(scheduler, ask((*SYSTEM, 30, 31)))
    scheduler.submit(ask((*SYSTEM, 40, 41, 42)))
    step, _ = advance(scheduler)
    assert (step.copies, step.truncations) == ([], [(0, 22), (0, 20)])


def test_the_same_prompt_again_is_read_at_its_end_only():
    scheduler = make()
    assert [run(scheduler, ask(SYSTEM)) for _ in range(3)] == [0, 18, 18]
    assert scheduler.stats().kept_tokens == 20


def test_who_comes_together_waits_for_the_first_and_copies():
    scheduler = make()
    for own in (30, 31, 32):
        scheduler.submit(ask((*SYSTEM, own, own)))
    step, _ = advance(scheduler)
    assert reads(step) == [(0, 0, 22)]
    step, events = advance(scheduler)
    assert step.copies == [(0, 1)]
    assert reads(step) == [(1, 20, 2), (0, 20, 2)]
    assert [event.cached_tokens for event in events if isinstance(event, Finished)] == [20, 20]


def test_strangers_do_not_wait_for_each_other():
    scheduler = make()
    scheduler.submit(ask(SYSTEM, tuple(reversed(SYSTEM))))
    assert len(advance(scheduler)[0].rows) == 2


def test_who_waits_for_a_long_prompt_begins_when_the_shared_part_is_read():
    scheduler = make(chunk=10)
    scheduler.submit(ask((*SYSTEM, *range(30, 50))))
    scheduler.submit(ask((*SYSTEM, 1, 1)))
    steps = [advance(scheduler)[0] for _ in range(4)]
    assert [reads(step) for step in steps[:2]] == [[(0, 0, 10)], [(0, 10, 10)]]
    assert (1, 20, 2) in [row for step in steps[2:] for row in reads(step)] + reads(advance(scheduler)[0])


def test_two_who_want_the_same_slot_in_one_step():
    scheduler = make()
    run(scheduler, ask(SYSTEM))
    scheduler.submit(ask((*SYSTEM, 30, 30)))
    scheduler.submit(ask((*SYSTEM, 31, 31)))
    step, _ = advance(scheduler)
    assert (reads(step), step.copies) == ([(1, 20, 2), (0, 20, 2)], [(0, 1)])


def test_a_copy_into_a_slot_that_was_just_freed_is_not_lost():
    scheduler = make(num_slots=2)
    scheduler.submit(ask(SYSTEM, max_tokens=5))
    scheduler.submit(ask((40, 41), max_tokens=2))
    advance(scheduler)
    advance(scheduler)
    scheduler.submit(ask((*SYSTEM, 30, 30)))
    step, _ = advance(scheduler)
    assert (step.copies, step.frees) == ([(0, 1)], [])


def test_if_the_first_is_aborted_the_next_reads_on_from_where_it_was():
    scheduler = make(chunk=10)
    group = scheduler.submit(ask((*SYSTEM, 1, 1)))
    scheduler.submit(ask((*SYSTEM, 2, 2)))
    advance(scheduler)
    scheduler.abort(group)
    step, _ = advance(scheduler)
    assert reads(step) == [(0, 10, 10)]


def test_all_choices_and_beams_have_the_prompt_from_there():
    scheduler = make()
    run(scheduler, ask(SYSTEM))
    scheduler.submit(ask(SYSTEM, num_choices=3))
    _, events = advance(scheduler)
    assert [event.cached_tokens for event in events if isinstance(event, Finished)] == [18] * 3
    group = scheduler.submit(ask(SYSTEM, beams=Beams(num_beams=3)))
    step = scheduler.schedule()
    assert reads(step)[0][1] == 18
    scheduler.abort(group)


@pytest.mark.parametrize(
    "options", [{"prompt_logprobs": 0}, {"adapter": 1}], ids=["scored prompts are read", "adapters read by themselves"]
)
def test_what_is_not_shared(options):
    scheduler = make(num_adapters=1)
    run(scheduler, ask(SYSTEM))
    assert run(scheduler, ask(SYSTEM, **options)) == 0


@pytest.mark.parametrize("change", [{"prefix_tokens": 0}, {"chunked_prefill": False}, {"truncation": False}], ids=str)
def test_who_keeps_nothing(change):
    scheduler = make(**change)
    assert [run(scheduler, ask(SYSTEM)) for _ in range(2)] == [0, 0]
    assert scheduler.stats().kept_tokens == 0


def test_short_beginnings_are_read_again():
    scheduler = make()
    run(scheduler, ask(SYSTEM))
    assert run(scheduler, ask((*SYSTEM[:7], 40, 40, 40))) == 0


def test_the_least_recently_used_goes_first():
    scheduler = make(prefix_tokens=45)
    first, second, third = SYSTEM, tuple(reversed(SYSTEM)), (3,) * 20
    run(scheduler, ask(first))
    run(scheduler, ask(second))
    assert run(scheduler, ask(first)) == 18
    run(scheduler, ask(third))
    assert scheduler.stats().kept_tokens == 40
    assert run(scheduler, ask(second)) == 0


def test_kept_prompts_make_room():
    """For slots and for tokens alike, and nobody is refused or waits because of them."""
    scheduler = make(num_slots=2, token_budget=60)
    run(scheduler, ask(SYSTEM))
    run(scheduler, ask(tuple(reversed(SYSTEM))))
    assert scheduler.stats().kept_tokens == 40
    scheduler.submit(ask((3,) * 25, max_tokens=5))
    advance(scheduler)
    stats = scheduler.stats()
    assert (stats.running, stats.waiting, stats.kept_tokens) == (1, 0, 20)
