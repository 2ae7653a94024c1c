"""Small random models of every family and variant, as directories, against transformers' logits and greedy tokens."""

import numpy as np
import pytest

from arriero.compute import Row, Want
from arriero.models.checkpoint import open_checkpoint
from fidelity.greedy import continuations
from references import tiny_families
from references.tiny_models import kept

TOLERANCE = 1e-4
CONTEXT = 192


@pytest.fixture(scope="module", params=tiny_families.CASES)
def model(request, open_runner, tmp_path_factory):
    """A runner, its prompts, and the reference: logits of each prompt's kept positions, and what follows it."""
    case = request.param
    checkpoint = open_checkpoint(tiny_families.write(case, tmp_path_factory.mktemp("family")))
    prompts = tiny_families.prompts(case)
    runner = open_runner(checkpoint, "fp32", slots=len(prompts), context=CONTEXT)
    counts = [len(kept(len(prompt))) for prompt in prompts]
    with np.load(tiny_families.FILE) as file:
        logits = np.split(file[f"{case}.logits"], np.cumsum(counts)[:-1])
        return runner, prompts, logits, file[f"{case}.greedy"].tolist()


@pytest.fixture(autouse=True)
def _empty_slots(model):
    yield
    for slot in range(model[0].info.num_slots):
        model[0].free(slot)


@pytest.mark.parametrize("chunk", [1000, 33, 2])
def test_prompts_whole_and_in_chunks(model, chunk):
    runner, prompts, logits, _ = model
    for slot, (prompt, expected) in enumerate(zip(prompts, logits, strict=True)):
        parts = [
            runner.step([Row(slot, prompt[start : start + chunk], start, Want.ALL)]).copy()
            for start in range(0, len(prompt), chunk)
        ]
        np.testing.assert_allclose(np.concatenate(parts)[kept(len(prompt))], expected, rtol=0, atol=TOLERANCE)


def test_token_by_token_together(model):
    runner, prompts, logits, _ = model
    seen = [[] for _ in prompts]
    for position in range(max(map(len, prompts))):
        rows = [
            Row(slot, [prompt[position]], position) for slot, prompt in enumerate(prompts) if position < len(prompt)
        ]
        for row, row_logits in zip(rows, runner.step(rows).copy(), strict=True):
            seen[row.slot].append(row_logits)
    for values, prompt, expected in zip(seen, prompts, logits, strict=True):
        np.testing.assert_allclose(np.array(values)[kept(len(prompt))], expected, rtol=0, atol=TOLERANCE)


def test_greedy_tokens(model):
    runner, prompts, _, greedy = model
    assert continuations(runner, prompts, tiny_families.NUM_GREEDY, together=3, chunk=64) == greedy
