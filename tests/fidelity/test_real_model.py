"""SmolLM2-135M-Instruct in fp32 against transformers: logits, and tokens however they come about."""

import json

import pytest

from arriero.compute import Row
from fidelity.asking import answers
from fidelity.form import PROOF
from fidelity.greedy import continuations
from references import real_generations, real_model
from references.real_model import NUM_TOKENS

TOLERANCE = 1e-3
NUM_SLOTS = 16


@pytest.fixture(scope="module")
def runner(real_checkpoint, open_runner):
    return open_runner(real_checkpoint, "fp32", slots=NUM_SLOTS, context=3200)


@pytest.fixture(scope="module")
def everything():
    return real_model.continuations()


@pytest.fixture
def check(runner, everything, report):
    """Continue some prompts, all of them in the long form, and hold every token against the reference."""

    def continue_and_compare(
        num_short: int, num_long: int, num_tokens: int = NUM_TOKENS, *, together: int, chunk: int
    ) -> None:
        chosen = everything if PROOF else real_model.subset(everything, num_short, num_long)
        num_tokens = NUM_TOKENS if PROOF else num_tokens
        prompts = [each.prompt for each in chosen]
        answers = continuations(runner, prompts, num_tokens, together=together, chunk=chunk)
        expected = [each.tokens[:num_tokens] for each in chosen]
        same = sum(answer == tokens for answer, tokens in zip(answers, expected, strict=True))
        long = sum(len(prompt) >= real_model.LONG for prompt in prompts)
        report(f"{same} of {len(chosen)} prompts x {num_tokens} tokens identical, {long} prompts long")
        for answer, tokens, each in zip(answers, expected, chosen, strict=True):
            assert answer == tokens, f"prompt of {len(each.prompt)} tokens, smallest lead {each.smallest_gap:.5f}"

    return continue_and_compare


def test_the_reference_is_large_enough(everything):
    assert len(everything) >= 100
    assert sum(len(each.prompt) >= real_model.LONG for each in everything) >= 10
    assert all(len(each.tokens) == 64 for each in everything)


def test_logits(runner, report):
    worst = 0.0
    count = 0
    for prompt, references in real_model.logits().items():
        start = 0
        for each in references:
            end = each.position + 1
            if start < end:
                logits = runner.step([Row(0, prompt[start:end], start)])[0].copy()
                start = end
            worst = max(worst, float(abs(logits[each.columns] - each.values).max()))
            count += 1
        runner.free(0)
    report(f"largest difference {worst:.6f} at {count} positions")
    assert worst < TOLERANCE


def test_greedy_alone(check):
    check(num_short=2, num_long=1, num_tokens=24, together=1, chunk=1 << 20)


def test_greedy_in_a_batch_of_mixed_lengths(check):
    check(num_short=23, num_long=1, num_tokens=40, together=NUM_SLOTS, chunk=1 << 20)


def test_greedy_with_prompts_in_chunks(check):
    check(num_short=7, num_long=1, num_tokens=40, together=NUM_SLOTS, chunk=37)


# Searches and draws: `generate` with beams, penalties, filters

GENERATIONS = json.loads(real_generations.FILE.read_text())
SHORT_FORM = (0, 13)
"""Places of the prompts that are asked if not all are: one of 8 tokens, one of 40."""


@pytest.fixture(scope="module")
def generations(runner):
    """By setting and prompt the answers of the engine, asked all at once."""
    asked = [
        (name, place, request)
        for name, settings in real_generations.SETTINGS.items()
        for place, request in enumerate(real_generations.requests(settings))
        if PROOF or place in SHORT_FORM
    ]
    said = answers(runner, [request for *_, request in asked], together=NUM_SLOTS, chunk=512)
    return {(name, place): each for (name, place, _), each in zip(asked, said, strict=True)}


def test_the_reference_of_searches_is_large_enough():
    prompts = [request.prompts[0] for request in real_generations.requests({})]
    assert len(set(prompts)) == 40
    assert sum(len(prompt) >= real_model.LONG for prompt in prompts) == 4
    assert all(len(answers) == len(prompts) for answers in GENERATIONS.values())
    texts = [json.dumps(answers) for answers in GENERATIONS.values()]
    assert len(set(texts)) == len(texts) == len(real_generations.SETTINGS)  # early_stopping "never" is not False


@pytest.mark.parametrize("name", real_generations.SETTINGS)
def test_searches_and_draws(name, generations, report):
    places = [place for setting, place in generations if setting == name]
    different = [place for place in places if generations[name, place] != GENERATIONS[name][place]]
    num_answers = sum(len(GENERATIONS[name][place]) for place in places)
    report(f"{len(places) - len(different)} of {len(places)} prompts identical, {num_answers} answers")
    for place in different:
        assert generations[name, place] == GENERATIONS[name][place], f"prompt {place}"
