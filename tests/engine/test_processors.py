import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arriero.core import GenerationRequest, Sampling
from arriero.engine.processors import check, processors_of
from arriero.engine.sampling import Draw, distribution, sample
from arriero.errors import InvalidRequest

REFERENCE = json.loads((Path(__file__).parent.parent / "references" / "processors.json").read_text())
END = frozenset({3, 17})
VOCAB_SIZE = 20


def request_of(prompt, *, min_tokens=0, end=END, **sampling) -> GenerationRequest:
    return GenerationRequest(
        id="r",
        prompts=(tuple(prompt),),
        max_tokens=50,
        min_tokens=min_tokens,
        end_token_ids=end,
        sampling=Sampling(**sampling),
    )


def processors_for(prompt, **parameters):
    return processors_of(request_of(prompt, **parameters), prompt)


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=lambda case: f"{case['sequence']}-{case['parameters']}")
def test_rows_become_what_transformers_makes_of_them(case):
    sequence = REFERENCE["sequences"][case["sequence"]]
    processors = processors_for(sequence["prompt"], **case["parameters"])
    for count, (logits, expected) in enumerate(zip(sequence["logits"], case["rows"], strict=True)):
        row = processors.apply(np.array(logits, dtype=np.float32), sequence["prompt"] + sequence["answer"][:count])
        expected = [-math.inf if value is None else value for value in expected]
        np.testing.assert_allclose(row, expected, rtol=1e-5)


def naive(logits, prompt, answer, request) -> np.ndarray:
    """Each definition as it reads, counted anew."""
    sampling = request.sampling
    row = logits.astype(np.float64)
    for token in {*prompt, *answer}:
        row[token] = row[token] * (sampling.repetition_penalty ** (-1 if row[token] > 0 else 1))
    for token, count in Counter(answer).items():
        row[token] -= sampling.presence_penalty + count * sampling.frequency_penalty
    for token, bias in sampling.logit_bias:
        row[token] += bias
    banned = row.copy()
    size, tokens = sampling.no_repeat_ngram_size, [*prompt, *answer]
    for token in range(len(row)):
        seen = [tokens[start : start + size] for start in range(len(tokens) - size + 1)]
        if size and [*tokens, token][-size:] in seen:
            banned[token] = -np.inf
    if len(answer) < request.min_tokens:
        banned[list(request.end_token_ids)] = -np.inf
    return row if (banned == -np.inf).all() else banned


tokens = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=25)
requests = st.builds(
    request_of,
    st.lists(st.integers(0, 5), min_size=1, max_size=15),
    min_tokens=st.integers(0, 6),
    end=st.sampled_from([frozenset(), END, frozenset(range(VOCAB_SIZE))]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.2, 0.5, 100.0]),
    presence_penalty=st.sampled_from([0.0, 0.7, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.3, -0.4]),
    no_repeat_ngram_size=st.integers(0, 4),
    logit_bias=st.sampled_from([(), ((4, 5.0), (9, -100.0))]),
)


@given(requests, tokens, st.integers(0, 25), tokens)
def test_processors_agree_with_their_definitions(request_, answer, forked_at, other_answer):
    """Token by token, several at once, and for both sides of a fork."""
    prompt = list(request_.prompts[0])
    processors = processors_of(request_, prompt)
    logits = np.random.default_rng(len(answer)).normal(size=VOCAB_SIZE).astype(np.float32) * 3
    if processors is None:
        np.testing.assert_array_equal(naive(logits, prompt, answer, request_), logits)
        return
    before = logits.copy()
    fork = processors.copy()
    for count in range(len(answer) + 1):
        if count == forked_at:
            fork = processors.copy()
        row = processors.apply(logits, prompt + answer[:count])
        np.testing.assert_allclose(row, naive(logits, prompt, answer[:count], request_), rtol=1e-4, atol=1e-5)
    if forked_at <= len(answer):
        other_answer = answer[:forked_at] + other_answer
    row = fork.apply(logits, prompt + other_answer)
    np.testing.assert_allclose(row, naive(logits, prompt, other_answer, request_), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(logits, before)


def test_nothing_asked_is_nothing_done():
    assert processors_for([1, 2]) is None
    assert processors_for([1, 2], min_tokens=3, end=frozenset()) is None


def test_greedy_takes_the_best_after_the_processors_and_neighbours_do_not_notice():
    logits = np.array([[0, 3, 2.9, 1], [0, 3, 2.9, 1]], dtype=np.float32)
    greedy = Sampling(temperature=0)
    processors = processors_for([1], temperature=0, repetition_penalty=1.1)
    assert sample(logits, [Draw(0, greedy, 0, 1, processors, [1]), Draw(0, greedy, 1, 1), Draw(1, greedy, 2, 1)]) == [
        2,
        1,
        1,
    ]


def test_an_end_token_beyond_the_vocabulary_is_none():
    processors = processors_for([1], min_tokens=2, end=frozenset({1, 400}))
    row = processors.apply(np.zeros(5, dtype=np.float32), [1])
    assert row.tolist() == [0, -math.inf, 0, 0, 0]


@pytest.mark.parametrize(
    "parameters",
    [
        {"presence_penalty": 1.5, "frequency_penalty": 0.4},
        {"repetition_penalty": 1.8, "temperature": 0.8},
        {"logit_bias": ((2, 2.0), (5, -100.0)), "top_p": 0.9},
        {"no_repeat_ngram_size": 2, "frequency_penalty": -0.5, "min_p": 0.05},
        {"min_tokens": 10, "typical_p": 0.8, "logit_bias": ((3, 50.0),)},
    ],
    ids=repr,
)
def test_draws_follow_the_softmax_of_what_is_left(parameters):
    """Pearson's chi-square against the definitions; six standard deviations, so chance never fails it."""
    request = request_of([1, 2, 3], **parameters)
    prompt, answer = [1, 2, 3], [4, 4, 2, 7, 4, 2]
    logits = np.random.default_rng(8).normal(size=(1, VOCAB_SIZE)).astype(np.float32) * 1.5
    processors = processors_of(request, prompt)
    expected = naive(logits[0], prompt, answer, request).astype(np.float32)
    ids, weights = distribution(expected, request.sampling)
    shares = {int(token): weight / weights.sum() for token, weight in zip(ids, weights, strict=True) if weight > 1e-9}
    num_draws = 15_000
    draws = [Draw(0, request.sampling, choice, 9, processors, prompt + answer) for choice in range(num_draws)]
    counts = Counter(sample(logits, draws))
    assert set(counts) <= set(shares)
    statistic = sum((counts[token] - share * num_draws) ** 2 / (share * num_draws) for token, share in shares.items())
    freedom = len(shares) - 1
    assert statistic < freedom + 6 * math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", math.nan),
        ("repetition_penalty", math.inf),
        ("presence_penalty", 2.1),
        ("presence_penalty", math.nan),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", math.nan),
        ("no_repeat_ngram_size", -1),
        ("logit_bias", ((1, 101.0),)),
        ("logit_bias", ((1, math.nan),)),
        ("logit_bias", ((1, 1.0), (1, 2.0))),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(param, value):
    with pytest.raises(InvalidRequest) as caught:
        check(Sampling(**{param: value}))
    assert caught.value.param == param
