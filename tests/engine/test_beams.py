"""The search by itself; test_generations.py holds it against transformers."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arriero.core import Beams, Finished, GenerationRequest, Sampling, Token
from arriero.engine.beams import BeamSearch
from arriero.engine.processors import processors_of
from arriero.engine.sampling import draw_distinct, uniforms
from arriero.engine.scoring import score
from arriero.errors import EngineDied

VOCAB_SIZE = 6


def request_of(num_beams=3, *, n=1, end=frozenset(), max_tokens=4, logprobs=None, temperature=0.0, **beams):
    sampling = {key: beams.pop(key) for key in ("top_k", "seed", "no_repeat_ngram_size", "logit_bias") if key in beams}
    return GenerationRequest(
        id="r",
        prompts=((1, 2),),
        max_tokens=max_tokens,
        num_choices=n,
        end_token_ids=end,
        logprobs=logprobs,
        sampling=Sampling(temperature=temperature, **sampling),
        beams=Beams(num_beams=num_beams, **beams),
    )


def logits_after(tokens):
    return np.random.default_rng(tokens).normal(size=VOCAB_SIZE).astype(np.float32) * 2


def search_through(request, constraint=None, logits_of=logits_after):
    """The events, with a model that remembers what each place holds: only what is copied is there."""
    search = BeamSearch(request, 0, constraint, processors_of(request, request.prompts[0]))
    held = {0: list(request.prompts[0])}
    while not search.decided:
        rows = {beam.place: row for row, beam in enumerate(search.beams)}
        for beam in search.beams:
            assert held[beam.place] == beam.tokens
        candidates = search.candidates(np.stack([logits_of(beam.tokens) for beam in search.beams]), rows)
        before = {place: list(tokens) for place, tokens in held.items()}
        copies = search.take(candidates)
        assert len({destination for _, destination in copies}) == len(copies)
        held |= {destination: list(before[source]) for source, destination in copies}
        assert len({beam.place for beam in search.beams}) == len(search.beams) <= request.beams.num_beams
        for beam in search.beams:
            held[beam.place].append(beam.tokens[-1])
    return search.events()


def answers(events):
    found = {}
    for event in events:
        found.setdefault(event.index, []).append(event.id if isinstance(event, Token) else event.reason)
    return found


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_as_many_beams_as_there_are_answers_find_the_best(length_penalty):
    events = search_through(request_of(VOCAB_SIZE**3, n=5, max_tokens=3, length_penalty=length_penalty))

    def likelihood(tokens):
        whole = [1, 2, *tokens]
        return sum(score(logits_after(whole[:end]), whole[end], 0).value for end in range(2, 5))

    best = sorted(itertools.product(range(VOCAB_SIZE), repeat=3), key=likelihood, reverse=True)[:5]
    assert answers(events) == {index: [*tokens, "length"] for index, tokens in enumerate(best)}


@given(st.integers(2, 5), st.integers(0, 9), st.sampled_from([False, True, "never"]), st.booleans())
def test_what_a_beam_says_is_in_the_place_it_says_it(num_beams, seed, early_stopping, drawn):
    """`search_through` checks the copies; all choices are told whole, and differ."""
    request = request_of(
        num_beams,
        n=num_beams,
        end=frozenset({0, 4}),
        max_tokens=6,
        early_stopping=early_stopping,
        temperature=float(drawn),
        seed=seed,
    )
    said = answers(search_through(request))
    assert sorted(said) == list(range(num_beams))
    assert len({tuple(answer) for answer in said.values()}) >= min(num_beams, 2)
    assert not any({0, 4} & set(answer[:-1]) for answer in said.values())


class Until:
    """A constraint that has enough when a token has come twice."""

    def __init__(self, token, left=2):
        self.token, self.left = token, left

    def accept(self, token):
        self.left -= token == self.token
        return self.left == 0

    def copy(self):
        return Until(self.token, self.left)


def test_a_stop_string_ends_a_beam_and_is_told():
    said = answers(search_through(request_of(4, n=4, max_tokens=8, length_penalty=0.0), Until(3)))
    stopped = [answer for answer in said.values() if answer[-1] == "stop"]
    assert stopped
    assert all(answer.count(3) == 2 and answer[-2] == 3 for answer in stopped)
    assert all(answer.count(3) < 2 for answer in said.values() if answer[-1] == "length")


def test_log_probabilities_come_with_the_tokens():
    plain = search_through(request_of(3, n=2))
    events = search_through(request_of(3, n=2, logprobs=2))
    assert answers(events) == answers(plain)
    for index in range(2):
        tokens = [1, 2]
        for event in events:
            if isinstance(event, Token) and event.index == index:
                assert event.logprob == score(logits_after(tokens), event.id, 2)
                tokens.append(event.id)


def peaked(tokens):
    """Two tokens are possible, the others not."""
    logits = np.full(VOCAB_SIZE, -np.inf, dtype=np.float32)
    logits[[2, 5]] = [1.0, 0.5]
    return logits


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_fewer_possible_answers_than_beams(temperature):
    """The last stands for the missing ones."""
    request = request_of(4, n=4, max_tokens=1, temperature=temperature)
    assert answers(search_through(request, logits_of=peaked)) == {
        0: [2, "length"],
        1: [5, "length"],
        2: [5, "length"],
        3: [5, "length"],
    }
    said = answers(search_through(request_of(4, n=4, max_tokens=2, temperature=temperature), logits_of=peaked))
    assert sorted(said.values()) == [[2, 2, "length"], [2, 5, "length"], [5, 2, "length"], [5, 5, "length"]]


def test_never_to_stop_early_finds_later_answers():
    """The first answers are poor and short; a long one is better by its mean."""

    def logits_of(tokens):
        probabilities = (
            [0.4, 0.3, 0.1, 0.1, 0.05, 0.05] if len(tokens) < 4 else [0.01, 0.98, 0.0025, 0.0025, 0.0025, 0.0025]
        )
        return np.log(np.array(probabilities, dtype=np.float32))

    lengths = {
        early: search_through(
            request_of(2, end=frozenset({0}), max_tokens=12, early_stopping=early), logits_of=logits_of
        )[-1].num_tokens
        for early in (True, False, "never")
    }
    assert lengths[True] < lengths["never"] == 12


def test_logits_that_mean_nothing_are_an_error():
    search = BeamSearch(request_of(), 0, None, None)
    with pytest.raises(EngineDied, match="not finite"):
        search.candidates(np.full((1, VOCAB_SIZE), np.nan, dtype=np.float32), {0: 0})


def test_the_counts_include_the_end_token():
    end = frozenset(range(VOCAB_SIZE))
    (event,) = search_through(request_of(3, end=end))
    assert event == Finished(0, "stop", 1, ending=Token(0, event.ending.id))


@given(st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.0]), min_size=1, max_size=30), st.integers(1, 40))
def test_draws_without_replacement_are_distinct_and_possible(weights, count):
    array = np.array(weights, dtype=np.float32)
    places = draw_distinct(array, uniforms(1, 2, 3, count))
    assert len(set(places)) == len(places) == min(count, np.count_nonzero(array))
    assert all(array[place] for place in places)
    assert array.tolist() == np.array(weights, dtype=np.float32).tolist()


def test_pairs_without_replacement_have_their_probabilities():
    """Pearson's chi-square over ordered pairs; six standard deviations, so chance never fails it."""
    shares = [0.5, 0.3, 0.15, 0.05]
    array = np.array(shares, dtype=np.float32)
    num_draws = 12_000
    counts = Counter(tuple(draw_distinct(array, uniforms(3, 0, place, 2))) for place in range(num_draws))
    statistic = 0.0
    for first, second in itertools.permutations(range(4), 2):
        expected = num_draws * shares[first] * shares[second] / (1 - shares[first])
        statistic += (counts[first, second] - expected) ** 2 / expected
    assert statistic < 11 + 6 * math.sqrt(22)
