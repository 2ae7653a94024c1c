"""What a load costs in steps, rows, tokens and copies, and what a step costs in the scheduler."""

import pytest

from arriero.core import Finished, GenerationRequest, Sampling
from arriero.engine.local import execute
from arriero.engine.scheduler import Scheduler
from guards.counts import Calls, CountingRunner, check, tokens

SYSTEM = tokens(500)
ANSWER = 8


def make(**options):
    runner = CountingRunner(reply=lambda prompt: [7] * 1000, **options)
    sizes = {"token_budget": 100_000, "max_queue": 100, "chunk_beside_decode": 64, "prefix_tokens": 20_000}
    scheduler = Scheduler(runner.info, **sizes, clock=lambda: 0.0)
    return runner, scheduler


def ask(scheduler, *prompts, max_tokens=ANSWER, **options):
    for prompt in prompts:
        scheduler.submit(GenerationRequest(id="r", prompts=(prompt,), max_tokens=max_tokens, **options))


def advance(runner, scheduler):
    """One step; the events, or None when there is nothing to do."""
    step = scheduler.schedule()
    return scheduler.update(step, execute(runner, step)) if step else None


def finish(runner, scheduler):
    """Work until all is answered; what the runner was asked for since the last look, and the tokens at hand."""
    cached = 0
    while (events := advance(runner, scheduler)) is not None:
        cached += sum(event.cached_tokens for _, event in events if isinstance(event, Finished))
    counts = dict(runner.counts)
    runner.counts.clear()
    return counts, cached


def test_one_client():
    runner, scheduler = make()
    ask(scheduler, tokens(100))
    counts, _ = finish(runner, scheduler)
    check("100 tokens, 8 to answer", counts, {"steps": 8, "rows": 8, "tokens": 107, "logits": 8, "truncations": 1})


def test_a_long_prompt_alone():
    runner, scheduler = make()
    ask(scheduler, tokens(2000))
    counts, _ = finish(runner, scheduler)
    check("2000 tokens, 8 to answer", counts, {"steps": 11, "rows": 11, "tokens": 2007, "logits": 8, "truncations": 1})


def test_16_clients_with_prompts_of_their_own():
    runner, scheduler = make()
    ask(scheduler, *(tokens(100, seed) for seed in range(16)))
    counts, _ = finish(runner, scheduler)
    # Five prompts in the first step, then one every other step beside those that answer.
    most = {"steps": 30, "rows": 128 + 11, "tokens": 16 * 107, "logits": 128, "truncations": 16}
    check("16 prompts of 100 tokens", counts, most)


def test_16_clients_with_the_same_prompt():
    runner, scheduler = make()
    ask(scheduler, *[SYSTEM] * 16)
    counts, cached = finish(runner, scheduler)
    assert cached == 15 * (len(SYSTEM) - 1)
    most = {"steps": 9, "rows": 128, "tokens": 500 + 15 + 16 * 7, "logits": 128, "copies": 15, "copied tokens": 7500}
    check("16 times the same 500 tokens", counts, most | {"truncations": 31, "frees": 15})


def test_16_clients_with_the_same_system_prompt():
    runner, scheduler = make()
    ask(scheduler, *((*SYSTEM, *tokens(20, seed)) for seed in range(16)))
    counts, cached = finish(runner, scheduler)
    assert cached >= 15 * len(SYSTEM)
    most = {"steps": 13, "rows": 129, "tokens": 520 + 15 * 20 + 16 * 7, "logits": 128, "truncations": 31, "copies": 15}
    check("500 tokens that 16 share", counts, most | {"copied tokens": 15 * 520})


def test_a_second_turn():
    runner, scheduler = make()
    ask(scheduler, SYSTEM)
    finish(runner, scheduler)
    ask(scheduler, (*SYSTEM, *[7] * ANSWER, *tokens(20)))
    counts, cached = finish(runner, scheduler)
    assert cached == len(SYSTEM)
    read = 20 + ANSWER + ANSWER - 1
    check("a second turn", counts, {"steps": 8, "rows": 8, "tokens": read, "logits": 8, "truncations": 3, "frees": 1})


def test_a_long_prompt_beside_eight_that_answer():
    runner, scheduler = make()
    ask(scheduler, *(tokens(5, seed) for seed in range(8)), max_tokens=60)
    advance(runner, scheduler)
    runner.counts.clear()
    ask(scheduler, tokens(2000), max_tokens=1)
    num_steps = 0
    while scheduler.stats().running == 9 or not num_steps:
        advance(runner, scheduler)
        num_steps += 1
    most = {"steps": 32, "rows": 9 * 32, "tokens": 2000 + 8 * 32, "logits": 8 * 32 + 1}
    check("2000 tokens beside eight rows", dict(runner.counts), most | {"truncations": 0})


def test_prompt_log_probabilities_are_the_only_reason_for_more_logits():
    runner, scheduler = make()
    ask(scheduler, tokens(100), prompt_logprobs=0)
    check(
        "a prompt that is scored",
        finish(runner, scheduler)[0],
        {
            "steps": 8,
            "rows": 8,
            "tokens": 107,
            "logits": 107,
            "truncations": 1,
        },
    )


@pytest.mark.parametrize(
    ("num_rows", "sampling", "functions", "builtins"),
    [
        (1, Sampling(temperature=0), 32, 38),
        (16, Sampling(temperature=0), 161, 299),
        (16, Sampling(temperature=1, top_p=0.9), 305, 523),
    ],
    ids=["one greedy row", "16 greedy rows", "16 rows that draw"],
)
def test_calls_of_a_decode_step(num_rows, sampling, functions, builtins):
    runner, scheduler = make()
    ask(scheduler, *(tokens(5, seed) for seed in range(num_rows)), max_tokens=20, sampling=sampling)
    for _ in range(3):
        advance(runner, scheduler)
    with Calls("engine") as calls:
        advance(runner, scheduler)
    counted = {"functions": calls.functions, "builtins": calls.builtins}
    # Versions of Python differ by a few calls.
    check("calls of a step", counted, {"functions": functions * 110 // 100, "builtins": builtins * 110 // 100})
