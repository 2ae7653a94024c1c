"""Same answer with and without a beginning at hand: prompts that share work say what they say when read whole.

int8, and the native engine: every log-probability, bit for bit. fp32: every token.
"""

from dataclasses import replace

import numpy as np
import pytest

from arriero.core import Finished, GenerationRequest, Sampling, Token
from arriero.engine.local import execute
from arriero.engine.scheduler import Scheduler
from fidelity.form import EXACT, NATIVE, PROOF
from references import real_model
from references.tiny_models import CASES, random_checkpoint

NUM_REAL = 60 if PROOF else 6
TOKENS = 12


def conversations(bits, vocab_size, count):
    """Prompts that begin like one another in every way: again, longer, shorter, with another end."""
    prompts = []
    for kind, size in bits.random_raw((count, 2)).tolist():
        own = (bits.random_raw(1 + size % 90) % vocab_size).tolist()
        old = prompts[size % len(prompts)] if prompts else ()
        prompts.append(tuple([own, [*old, *own], [*old[: len(old) // 2], *own], list(old) or own][kind % 4][-400:]))
    return prompts


def second_turns(prompts, said):
    """Prompts that go on from what others were answered, or from a part of it."""
    return [
        (*prompt, *[token for token, _ in said[number]][: TOKENS - number % 4], *prompts[number - 1][:20])
        for number, prompt in enumerate(prompts)
    ]


def answers(runner, prompts, prefix_tokens, spare=False):
    """What each prompt is answered, a few at a time; and how many prompt tokens were at hand in all.

    With `spare`, one at a time, and all answers are read as prompts in between.
    """
    scheduler = Scheduler(
        runner.info, token_budget=20_000, max_queue=100, chunk=64, chunk_beside_decode=32, prefix_tokens=prefix_tokens
    )
    said, cached, pending, groups = {}, 0, list(enumerate(prompts)), {}
    while pending or groups:
        while pending and len(groups) < (1 if spare else 5):
            number, prompt = pending.pop(0)
            sampling = Sampling(temperature=len(prompt) % 2, seed=sum(prompt))
            request = GenerationRequest(
                id=str(number), prompts=(prompt,), max_tokens=TOKENS + len(prompt) % 3, sampling=sampling, logprobs=3
            )
            groups[scheduler.submit(request)] = number
        step = scheduler.schedule()
        for group, event in scheduler.update(step, execute(runner, step)):
            if isinstance(event, Token):
                said.setdefault(groups[group], []).append((event.id, event.logprob))
            elif isinstance(event, Finished):
                cached += event.cached_tokens
                del groups[group]
        while spare and not groups and (step := scheduler.schedule() or scheduler.spare()):
            scheduler.update(step, execute(runner, step))
    for slot in range(runner.info.num_slots):
        runner.free(slot)
    return said, cached


def check(runner, prompts, weights, report):
    read, _ = answers(runner, prompts, 0)
    shared, cached = answers(runner, prompts, 3000)
    report(f"{len(prompts)} prompts, {cached} of {sum(map(len, prompts))} tokens at hand")
    assert cached > sum(map(len, prompts)) // 5
    same(shared, read, weights)


def same(shared, read, weights):
    if weights in EXACT:
        assert shared == read
    else:
        tokens = [{number: [token for token, _ in said] for number, said in each.items()} for each in (shared, read)]
        assert tokens[0] == tokens[1]


def check_turns(runner, prompts, weights, report):
    """Each prompt, and right behind it one that goes on from its answer."""
    first, _ = answers(runner, prompts, 0)
    turns = [prompt for pair in zip(prompts, second_turns(prompts, first), strict=True) for prompt in pair]
    read, _ = answers(runner, turns, 0)
    shared, cached = answers(runner, turns, 3000, spare=True)
    report(f"{len(turns)} turns, {cached} of {sum(map(len, turns))} tokens at hand")
    assert cached > sum(len(prompt) + 5 for prompt in prompts if len(prompt) > 1)
    same(shared, read, weights)


@pytest.mark.parametrize("weights", ["int8", "fp32", *NATIVE])
@pytest.mark.parametrize("case", ["grouped", "like_smollm"])
def test_tiny_models(case, weights, open_runner, report):
    runner = open_runner(random_checkpoint(replace(CASES[case], context=512)), weights, slots=12, context=512)
    check(runner, conversations(np.random.PCG64(5), runner.info.vocab_size, 120), weights, report)


@pytest.mark.parametrize("weights", ["int8", "fp32", *NATIVE])
@pytest.mark.parametrize("case", ["grouped", "like_smollm"])
def test_second_turns_of_tiny_models(case, weights, open_runner, report):
    runner = open_runner(random_checkpoint(replace(CASES[case], context=512)), weights, slots=12, context=512)
    prompts = conversations(np.random.PCG64(6), runner.info.vocab_size, 120 if PROOF else 20)
    check_turns(runner, [prompt for prompt in prompts if len(prompt) > 3], weights, report)


@pytest.mark.parametrize("weights", ["int8", "fp32", *NATIVE] if PROOF else ["native int8"])
def test_second_turns_of_the_real_model(weights, real_checkpoint, open_runner, report):
    runner = open_runner(real_checkpoint, weights, slots=12, context=3200)
    prompts = [prompt for prompt in real_model.prompts() if 40 < len(prompt) < 300][: NUM_REAL // 3]
    check_turns(runner, prompts, weights, report)


@pytest.mark.parametrize("weights", ["int8", "fp32", *NATIVE] if PROOF else ["native int8"])
def test_the_real_model(weights, real_checkpoint, open_runner, report):
    """Each prompt, then the same with more behind it, then another end to its first half."""
    runner = open_runner(real_checkpoint, weights, slots=12, context=3200)
    texts = [prompt for prompt in real_model.prompts() if 40 < len(prompt) < 300][:NUM_REAL]
    prompts = [
        prompt
        for text, other in zip(texts, [*texts[1:], texts[0]], strict=True)
        for prompt in (text, (*text, *other), (*text[: len(text) // 2], *other))
    ]
    check(runner, prompts, weights, report)
