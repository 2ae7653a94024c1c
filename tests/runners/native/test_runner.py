"""Kernels of our own against fp32, against ONNX Runtime's int8, and against themselves in other company."""

from itertools import pairwise

import numpy as np
import pytest

from arriero.compute import Row, Want
from arriero.errors import UnsupportedModel
from arriero.runners.native import load_runner, reason_against
from arriero.runners.onnx import load_runner as load_onnx
from references.tiny_models import CASES, prompts, random_checkpoint

COMPUTED = [name for name, config in CASES.items() if reason_against(config) is None]


def logits_of(runner, prompt):
    logits = runner.step([Row(0, prompt, 0, Want.ALL)]).copy()
    runner.free(0)
    return logits


def cosine(a, b):
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def test_most_cases_are_computed():
    assert {"grouped", "attention_bias", "odd_sizes", "like_smollm", "llama3_rope", "wide_heads"} <= set(COMPUTED)


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("name", COMPUTED)
def test_logits_are_as_near_to_fp32_as_those_of_the_onnx_engine(name, weights, tmp_path):
    checkpoint = random_checkpoint(CASES[name])
    options = {"slots": 1, "context": checkpoint.config.context, "cache": tmp_path}
    exact = load_onnx(checkpoint, weights="fp32", threads=1, **options)
    other = load_onnx(checkpoint, weights=weights, threads=1, **options)
    ours = load_runner(checkpoint, weights=weights, threads=2, **options)
    errors = []
    for prompt in prompts(checkpoint.config):
        expected = logits_of(exact, prompt)
        errors.append([1 - cosine(logits_of(runner, prompt), expected) for runner in (ours, other)])
    error, other_error = np.mean(errors, axis=0)
    assert error < max(1.2 * other_error, 2e-3)
    for runner in (exact, other, ours):
        runner.close()


def test_states_are_those_of_the_checkpoint(tmp_path):
    checkpoint = random_checkpoint(CASES["like_smollm"])
    options = {"slots": 1, "context": 64, "threads": 1, "cache": tmp_path}
    exact, ours = load_onnx(checkpoint, weights="fp32", **options), load_runner(checkpoint, weights="int8", **options)
    row = Row(0, list(range(2, 40)), 0)
    assert cosine(ours.states(row), exact.states(row)) > 0.998
    exact.close()
    ours.close()


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_long_prompts_are_the_same_in_any_chunks_and_any_company(weights, tmp_path):
    """Over several blocks of keys and values, with chunks that end anywhere in them."""
    checkpoint = random_checkpoint(CASES["like_smollm"])
    options = {"slots": 4, "context": checkpoint.config.context, "threads": 2, "cache": tmp_path}
    runner = load_runner(checkpoint, weights=weights, **options)
    random = np.random.default_rng(0)
    length = min(checkpoint.config.context, 200)
    prompt, other = (random.integers(0, checkpoint.config.vocab_size, length).tolist() for _ in range(2))
    whole = logits_of(runner, prompt)
    for _ in range(5):
        cuts = [0, *sorted(random.choice(np.arange(1, length), 6, replace=False).tolist()), length]
        parts = []
        for start, end in pairwise(cuts):
            rows = [Row(2, prompt[start:end], start, Want.ALL), Row(0, other[start:end], start, Want.NOTHING)]
            parts.append(runner.step(rows).copy())
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        runner.copy([(2, 3)])
        runner.truncate(3, length - 70)
        again = runner.step([Row(3, prompt[length - 70 :], length - 70, Want.ALL)])
        np.testing.assert_array_equal(again, whole[length - 70 :])
        for slot in (0, 2, 3):
            runner.free(slot)
    runner.close()


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_logits_are_the_same_while_weights_find_their_place(weights, tmp_path, monkeypatch):
    monkeypatch.setattr("arriero.runners.native.weights._HUGE_PAGE", 4096)  # small weights, many pieces
    checkpoint = random_checkpoint(CASES["like_smollm"])
    runner = load_runner(checkpoint, weights=weights, slots=1, context=64, threads=2, cache=tmp_path)
    (prompt, *_) = prompts(checkpoint.config)
    expected, places = logits_of(runner, prompt), []
    for _ in range(140):
        np.testing.assert_array_equal(logits_of(runner, prompt), expected)
        places.append(runner._program.copy())
    moves = [int((one != other).sum()) for one, other in pairwise(places)]
    assert sum(map(bool, moves)) > 5  # a few addresses in each of several steps
    assert not any(moves[-5:])
    runner.close()


def test_a_model_that_is_not_computed_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UnsupportedModel, match="biases"):
        load_runner(
            random_checkpoint(CASES["mlp_bias"]), weights="int8", slots=1, context=64, threads=1, cache=tmp_path
        )
