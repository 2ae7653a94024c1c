"""Same answer alone or in a crowd: what a sequence says does not depend on what else runs or how it was cut.

int8, and the native engine: every logit, bit for bit. fp32: every token. int4 on ONNX Runtime promises nothing, and
its runner says so.
"""

from dataclasses import replace

import numpy as np
import pytest

from arriero.compute import Row, Want
from arriero.models.architecture import POST_NORMS, SANDWICH_NORMS
from fidelity.crowd import Crowd, Work, alone
from fidelity.form import EXACT, NATIVE, PROOF
from references import real_model
from references.tiny_models import CASES, random_checkpoint

BATCHES = (1, 4, 16, 48)
TINY_CONTEXT = 512
NUM_TINY = 200 if PROOF else 40
NUM_REAL = 200 if PROOF else 10
REAL_BATCHES = BATCHES if PROOF else (16,)
REAL_FORMATS = ("int8", "fp32", *NATIVE) if PROOF else ("int8", "native int8")
REAL_TOKENS = 24 if PROOF else 8


FAMILIES = {
    "windows": replace(CASES["grouped"], windows=(24, None)),
    "like_gemma2": replace(
        CASES["wide_heads"],
        norms=SANDWICH_NORMS,
        activation="gelu_tanh",
        attention_scale=0.3,
        attention_softcap=2.0,
        logits_softcap=3.0,
        windows=(100, None),
    ),
    "like_gemma3": replace(
        CASES["grouped"], norms=SANDWICH_NORMS, qk_norm="head", windows=(24, None), local_rope_theta=100.0
    ),
    "like_olmo2": replace(CASES["grouped"], norms=POST_NORMS, qk_norm="projection", layers_without_positions=(1,)),
}
"""What other families do in attention and around it."""
TRIED_FAMILIES = FAMILIES if PROOF else ("windows", "like_gemma2")


def tiny_checkpoint(case):
    return random_checkpoint(replace({**CASES, **FAMILIES}[case], context=TINY_CONTEXT))


def random_works(vocab_size, count):
    """Prompts of one token to 400, most of them short, with 16 to 24 tokens to come."""
    bits = np.random.PCG64(8)
    works = []
    for kind, size, num_tokens in bits.random_raw((count, 3)).tolist():
        longest = (8, 40, 40, 130, 400)[kind % 5]
        prompt = bits.random_raw(1 + size % longest) % vocab_size
        works.append(Work(tuple(prompt.tolist()), 16 + num_tokens % 9))
    return works


def real_works(count):
    """The reference's prompts, their latter two thirds and their first half; up to seven long ones."""
    whole = real_model.prompts()
    parts = [part for each in whole if len(each) > 2 for part in (each[len(each) // 3 :], each[: len(each) // 2])]
    prompts = whole + parts
    short = [prompt for prompt in prompts if len(prompt) < 300]
    long = [prompt for prompt in prompts if len(prompt) >= real_model.LONG][: min(7, count // 10)]
    num_short = count - len(long)
    chosen = short[:: len(short) // num_short][:num_short] + long
    return [Work(prompt, REAL_TOKENS) for prompt in chosen]


@pytest.fixture(scope="module", params=["int8", "fp32", *NATIVE])
def weights(request):
    return request.param


@pytest.fixture(
    scope="module",
    params=["grouped", "like_smollm", "wide_heads", *(FAMILIES if PROOF else ("windows", "like_gemma2"))],
)
def tiny(request, weights, open_runner):
    """A runner, sequences for it, and what each says alone."""
    checkpoint = tiny_checkpoint(request.param)
    runner = open_runner(checkpoint, weights, slots=max(BATCHES), context=TINY_CONTEXT)
    works = random_works(runner.info.vocab_size, NUM_TINY)
    return runner, works, [alone(runner, work) for work in works]


@pytest.fixture(scope="module", params=REAL_FORMATS)
def real(request, real_checkpoint, open_runner):
    """The same of the real model."""
    runner = open_runner(real_checkpoint, request.param, slots=max(REAL_BATCHES), context=3200)
    works = real_works(NUM_REAL)
    return request.param, runner, works, [alone(runner, work) for work in works]


def check(counts, weights):
    assert counts.other_tokens == 0
    if weights in EXACT:
        assert counts.other_logits == 0


@pytest.mark.parametrize("batch", BATCHES)
def test_tiny_models(tiny, weights, batch, report):
    runner, works, expected = tiny
    assert runner.info.invariant
    counts = Crowd(runner, works, expected, batch, seed=batch).run()
    report(str(counts))
    check(counts, weights)


def test_every_cut_of_a_prompt(tiny, weights):
    """Kernels work in blocks, so what matters may be a remainder: try them all."""
    runner, _, _ = tiny
    prompt = (np.random.PCG64(3).random_raw(300) % runner.info.vocab_size).tolist()
    whole = runner.step([Row(0, prompt, 0)])[0].copy()
    least = runner.info.min_prompt_chunk
    for cut in range(least, len(prompt) - least + 1):
        runner.truncate(0, 0)
        runner.step([Row(0, prompt[:cut], 0, Want.NOTHING)])
        logits = runner.step([Row(0, prompt[cut:], cut)])[0]
        if weights in EXACT:
            assert np.array_equal(logits, whole), f"cut after {cut}"
        assert logits.argmax() == whole.argmax(), f"cut after {cut}"
    runner.free(0)


@pytest.mark.parametrize("batch", REAL_BATCHES)
def test_the_real_model(real, batch, report):
    weights, runner, works, expected = real
    assert runner.info.invariant
    counts = Crowd(runner, works, expected, batch, seed=batch).run()
    report(str(counts))
    check(counts, weights)


def test_the_comparison_sees_a_difference(tiny):
    runner, works, expected = tiny
    other = [*expected[1:], expected[0]]
    assert Crowd(runner, works, other, 4, seed=1).run().other_logits > NUM_TINY // 2


def test_int4_makes_no_promise(open_runner, report):
    checkpoint = tiny_checkpoint("like_smollm")
    runner = open_runner(checkpoint, "int4", slots=max(BATCHES), context=TINY_CONTEXT)
    works = random_works(runner.info.vocab_size, NUM_TINY)
    counts = Crowd(runner, works, [alone(runner, work) for work in works], 16, seed=16).run()
    report(str(counts))
    assert not runner.info.invariant
