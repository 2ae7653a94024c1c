"""Small random models of every kind the family has, against transformers' logits."""

import numpy as np
import pytest

from arriero.compute import Row, Want
from references import tiny_models

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=tiny_models.CASES)
def model(request, open_runner):
    """A runner, its prompts, and the reference: one array of logits a prompt, of the positions that are kept."""
    config = tiny_models.CASES[request.param]
    prompts = tiny_models.prompts(config)
    runner = open_runner(tiny_models.random_checkpoint(config), "fp32", slots=len(prompts), context=config.context)
    counts = [len(tiny_models.kept(len(prompt))) for prompt in prompts]
    with np.load(tiny_models.FILE) as file:
        reference = np.split(file[f"{request.param}.logits"], np.cumsum(counts)[:-1])
    return runner, prompts, reference


@pytest.fixture(autouse=True)
def _empty_slots(model):
    yield
    runner, _, _ = model
    for slot in range(runner.info.num_slots):
        runner.free(slot)


def test_whole_prompts(model):
    runner, prompts, reference = model
    for slot, (prompt, expected) in enumerate(zip(prompts, reference, strict=True)):
        logits = runner.step([Row(slot, prompt, 0, Want.ALL)])
        np.testing.assert_allclose(logits[tiny_models.kept(len(prompt))], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("chunk", [2, 7, 64])
def test_prompts_in_chunks(model, chunk):
    runner, prompts, reference = model
    for slot, (prompt, expected) in enumerate(zip(prompts, reference, strict=True)):
        parts = [
            runner.step([Row(slot, prompt[start : start + chunk], start, Want.ALL)]).copy()
            for start in range(0, len(prompt), chunk)
        ]
        logits = np.concatenate(parts)
        np.testing.assert_allclose(logits[tiny_models.kept(len(prompt))], expected, rtol=0, atol=TOLERANCE)


def test_token_by_token_together(model):
    runner, prompts, reference = model
    seen = [[] for _ in prompts]
    for position in range(max(map(len, prompts))):
        rows = [
            Row(slot, [prompt[position]], position) for slot, prompt in enumerate(prompts) if position < len(prompt)
        ]
        for row, logits in zip(rows, runner.step(rows).copy(), strict=True):
            seen[row.slot].append(logits)
    for logits, prompt, expected in zip(seen, prompts, reference, strict=True):
        kept = np.array(logits)[tiny_models.kept(len(prompt))]
        np.testing.assert_allclose(kept, expected, rtol=0, atol=TOLERANCE)
