"""The committed references of tests/fidelity are what transformers computes today."""

import json
import os

import numpy as np
import pytest

from references import make_real_model, real_generations, real_model, tiny_families, tiny_models

EVERY = slice(None, None, 1 if os.environ.get("PROOF") else 13)


@pytest.fixture(scope="module")
def model(smollm2_path):
    return make_real_model.load_model(smollm2_path)


def test_tiny_models():
    made = tiny_models.make()
    with np.load(tiny_models.FILE) as committed:
        assert set(committed) == set(made)
        for name, values in made.items():
            np.testing.assert_allclose(committed[name], values, rtol=0, atol=1e-4)


def test_tiny_families():
    made = tiny_families.make()
    with np.load(tiny_families.FILE) as committed:
        assert set(committed) == set(made)
        for name, values in made.items():
            np.testing.assert_allclose(committed[name], values, rtol=0, atol=1e-4, err_msg=name)


def test_prompts_of_the_real_model(smollm2_path):
    assert real_model.prompts() == [tuple(prompt) for prompt in make_real_model.load_prompts(smollm2_path)]


@pytest.mark.timeout(3600)
def test_continuations_by_the_real_model(model):
    for each in real_model.continuations()[EVERY]:
        tokens, _ = make_real_model.greedy(model, list(each.prompt))
        assert tokens == each.tokens


@pytest.mark.timeout(600)
def test_logits_of_the_real_model(model):
    made = make_real_model.logits(model, [list(prompt) for prompt in real_model.prompts()])
    with np.load(real_model.FILE) as committed:
        for name, values in made.items():
            np.testing.assert_allclose(committed[name], values, rtol=0, atol=1e-4)


@pytest.mark.timeout(3600)
def test_searches_and_draws_of_the_real_model(model):
    every = bool(os.environ.get("PROOF"))
    names = list(real_generations.SETTINGS) if every else ["beams, repetition penalty", "sampled, min_p"]
    lengths = list(real_generations.LENGTHS) if every else [8]
    places = [
        place for place, request in enumerate(real_generations.requests({})) if len(request.prompts[0]) in lengths
    ]
    committed = json.loads(real_generations.FILE.read_text())
    for name, answers in real_generations.make(model, names, lengths).items():
        assert answers == [committed[name][place] for place in places], name
