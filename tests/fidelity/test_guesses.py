"""Same answer with and without guesses of what comes next.

int8, and the native engine: every log-probability, bit for bit. fp32: every token.
"""

from dataclasses import replace

import numpy as np
import pytest

from arriero.compute import Row, Want
from arriero.core import GenerationRequest, Sampling, Token
from arriero.engine.local import execute
from arriero.engine.scheduler import Scheduler
from fidelity.form import EXACT, NATIVE, PROOF
from fidelity.test_invariance import FAMILIES
from references import real_model
from references.tiny_models import CASES, random_checkpoint

GUESSES = 3


def answers(runner, prompts, num_tokens, num_guesses):
    """What each prompt is answered, alone; and in how many steps."""
    info = replace(runner.info, num_guesses=num_guesses)
    said, num_steps = [], 0
    for number, prompt in enumerate(prompts):
        scheduler = Scheduler(info, token_budget=4000, max_queue=1)
        sampling = Sampling(temperature=0.5 * (number % 2), seed=number)
        request = GenerationRequest(id="r", prompts=(prompt,), max_tokens=num_tokens, sampling=sampling, logprobs=2)
        scheduler.submit(request)
        while step := scheduler.schedule():
            said += [event for _, event in scheduler.update(step, execute(runner, step)) if isinstance(event, Token)]
            num_steps += 1
    return said, num_steps


def check(runner, prompts, num_tokens, weights, report):
    read, num_single = answers(runner, prompts, num_tokens, 0)
    guessed, num_steps = answers(runner, prompts, num_tokens, GUESSES)
    report(f"{num_steps} steps instead of {num_single}")
    assert num_steps < num_single
    if weights in EXACT:
        assert guessed == read
    else:
        assert [token.id for token in guessed] == [token.id for token in read]


def open_guessing(open_runner, checkpoint, weights, context):
    return open_runner(checkpoint, weights, slots=2, context=context, guesses=GUESSES)


@pytest.mark.parametrize("weights", ["int8", "fp32", *NATIVE])
@pytest.mark.parametrize("case", ["grouped", "like_smollm", *(FAMILIES if PROOF else ("like_gemma3",))])
def test_rows_of_tiny_models(case, weights, open_runner):
    """Logits, and what is left in the slot, are those of one token after another, wherever the row begins."""
    checkpoint = random_checkpoint(replace({**CASES, **FAMILIES}[case], context=256))
    runner = open_guessing(open_runner, checkpoint, weights, 256)
    bits = np.random.PCG64(4)
    for length in (1, 2, 15, 16, 17, 40, 130, 250):
        tokens = (bits.random_raw(length + GUESSES + 3) % runner.info.vocab_size).tolist()
        for slot in range(2):
            runner.step([Row(slot, tokens[:length], 0, Want.NOTHING)])
        single = [runner.step([Row(0, [tokens[place]], place)])[0].copy() for place in range(length, length + 4)]
        count = 2 + length % GUESSES
        row = Row(1, tokens[length : length + count], length, Want.ALL, guessed=True)
        together = runner.step([row]).copy()
        runner.truncate(1, length + 2)
        after = runner.step([Row(1, [tokens[length + 2]], length + 2)])[0]
        if weights in EXACT:
            assert np.array_equal(together, single[:count])
            assert np.array_equal(after, single[2])
        assert np.array_equal(together.argmax(1), [each.argmax() for each in single[:count]])
        assert after.argmax() == single[2].argmax()
        for slot in range(2):
            runner.free(slot)


@pytest.mark.parametrize("weights", ["int8", "fp32", *NATIVE] if PROOF else ["native int8"])
def test_the_real_model(weights, real_checkpoint, open_runner, report):
    runner = open_guessing(open_runner, real_checkpoint, weights, 1024)
    prompts = [prompt for prompt in real_model.prompts() if 100 < len(prompt) < 300][: 20 if PROOF else 2]
    check(runner, prompts, 60 if PROOF else 40, weights, report)
