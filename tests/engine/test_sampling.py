import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arriero.core import Sampling
from arriero.engine import sampling
from arriero.engine.sampling import Draw, check, distribution, sample, uniform
from arriero.errors import EngineDied, InvalidRequest

REFERENCE = json.loads((Path(__file__).parent.parent / "references" / "sampling_filters.json").read_text())

logit = st.one_of(st.integers(-6, 6).map(float), st.floats(-30, 30, width=32))
rows = st.lists(logit, min_size=1, max_size=400).map(lambda values: np.array(values, dtype=np.float32))
mild_samplings = st.builds(
    Sampling,
    temperature=st.floats(0.05, 3),
    top_k=st.integers(0, 60),
    top_p=st.floats(0, 1),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0.05, 3),
    top_k=st.integers(0, 60),
    top_p=st.floats(0, 1),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
    typical_p=st.one_of(st.just(1.0), st.floats(0.01, 1)),
    seed=st.integers(-(2**70), 2**70),
)


def probabilities(logits, parameters: Sampling) -> dict[int, float]:
    ids, weights = distribution(np.asarray(logits, dtype=np.float32), parameters)
    return dict(zip(ids.tolist(), (weights / weights.sum(dtype=np.float64)).tolist(), strict=True))


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=lambda case: f"{case['row']}-{case['parameters']}")
def test_filters_keep_what_transformers_keeps(case):
    ours = probabilities(REFERENCE["rows"][case["row"]], Sampling(**case["parameters"]))
    # Tokens whose probability is too small for float32 are no difference.
    assert [token for token, share in ours.items() if share > 1e-38] == case["kept"]
    assert [ours[token] for token in case["kept"]] == pytest.approx(case["probabilities"], rel=1e-4)


def test_top_p_of_the_worked_example():
    logits = np.log([0.23, 0.20, 0.18, 0.11, 0.10, 0.09, 0.09])
    assert list(probabilities(logits, Sampling(top_p=0.6))) == [0, 1, 2]


def test_top_p_prefers_the_smaller_of_equal_ids():
    assert list(probabilities([0, 1, 1, 1, 1, 0], Sampling(top_p=0.4))) == [1, 2]


def test_top_k_keeps_all_that_equal_the_last():
    assert list(probabilities([3, 1, 2, 2, 2, 0], Sampling(top_k=2))) == [0, 2, 3, 4]


def naive(logits: np.ndarray, parameters: Sampling, top_p: float) -> set[int]:
    """The filters as their definitions read, over the weights that float32 gives."""
    exact = np.exp((logits - logits.max()) / np.float32(parameters.temperature)).tolist()
    weights = dict(enumerate(exact))
    if parameters.top_k:
        last = sorted(logits.tolist(), reverse=True)[: parameters.top_k][-1]
        weights = {token: weight for token, weight in weights.items() if logits[token] >= last}
    whole = math.fsum(weights.values())
    kept: dict[int, float] = {}
    for token in sorted(weights, key=lambda token: (-weights[token], token)):
        if parameters.top_p < 1 and kept and math.fsum(kept.values()) >= top_p * whole:
            break
        kept[token] = weights[token]
    return {token for token, weight in kept.items() if weight >= np.float32(parameters.min_p)}


@given(rows, mild_samplings)
def test_filters_agree_with_their_definitions(logits, parameters):
    """Where rounding decides whether the sum is reached, either answer will do."""
    ours = set(distribution(logits, parameters)[0].tolist())
    assert naive(logits, parameters, parameters.top_p - 1e-9) <= ours
    assert ours <= naive(logits, parameters, parameters.top_p + 1e-9)


def naive_typical(logits: np.ndarray, typical_p: float, slack: float) -> set[int]:
    """Meister et al.'s definition, over the weights that float32 gives; surprises within `slack` are equal."""
    shares = np.exp(logits - logits.max()).astype(float)
    shares = {token: share for token, share in enumerate(shares / shares.sum()) if share}
    entropy = -math.fsum(share * math.log(share) for share in shares.values())
    distance = {token: abs(-math.log(share) - entropy) for token, share in shares.items()}
    mass, last = 0.0, 0.0
    for token in sorted(shares, key=distance.__getitem__):
        if mass >= typical_p + slack:
            break
        mass, last = mass + shares[token], distance[token]
    return {token for token in shares if distance[token] <= last + slack}


@given(rows, st.floats(0.01, 0.99))
def test_typical_sampling_agrees_with_its_definition(logits, typical_p):
    ours = set(distribution(logits, Sampling(typical_p=typical_p))[0].tolist())
    assert naive_typical(logits, typical_p, -1e-5) <= ours <= naive_typical(logits, typical_p, 1e-5)


@given(rows, samplings, st.integers(1, 5))
def test_filters_let_at_least_so_many_pass(logits, parameters, least):
    """Also the most probable ones, unless the filter is for typical tokens."""
    ids, weights = sampling._filter(logits, logits.max(), parameters, least)
    ids = list(range(len(weights))) if ids is None else ids.tolist()
    alive = np.exp((logits - logits.max()) / np.float32(parameters.temperature)) > 0
    assert len(ids) >= min(least, alive.sum())
    assert set(distribution(logits, parameters)[0].tolist()) <= set(ids) or parameters.typical_p < 1


@given(st.lists(rows, min_size=1, max_size=5), st.lists(samplings, min_size=5, max_size=5), st.integers(0, 10**6))
def test_a_row_does_not_depend_on_its_neighbours(batch, parameters, position):
    width = max(len(row) for row in batch)
    logits = np.stack([np.pad(row, (0, width - len(row)), constant_values=-40) for row in batch])
    draws = [Draw(row, parameters[row], row % 3, position + row) for row in range(len(batch))]
    alone = [sample(logits[draw.row : draw.row + 1], [draw._replace(row=0)])[0] for draw in draws]
    assert sample(logits, draws) == alone
    assert sample(logits, draws[::-1]) == alone[::-1]


@given(rows)
def test_greedy_takes_the_smallest_id_of_the_largest(logits):
    greedy = Sampling(temperature=0, top_k=3, top_p=0.1, min_p=0.9)
    values = logits.tolist()
    assert sample(logits[None], [Draw(0, greedy, 0, 0)]) == [values.index(max(values))]


@given(st.lists(logit, min_size=2, max_size=40, unique=True), st.floats(1e-300, 1e-9))
def test_the_coldest_temperatures_are_as_greedy(values, temperature):
    logits = np.array([values], dtype=np.float32).round(2)
    (token,) = sample(logits, [Draw(0, Sampling(temperature=temperature), 0, 5)])
    assert logits[0, token] == logits.max()


@pytest.mark.parametrize(
    "parameters",
    [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(top_k=9),
        Sampling(temperature=1.3, top_p=0.8, min_p=0.03),
        Sampling(temperature=1.2, typical_p=0.7),
    ],
    ids=repr,
)
@pytest.mark.parametrize("vocab_size", [60, 9000])
def test_draws_follow_the_filtered_softmax(parameters, vocab_size):
    """Pearson's chi-square over choices and positions; six standard deviations, so chance never fails it."""
    logits = np.full((1, vocab_size), -60, dtype=np.float32)
    logits[0, :: vocab_size // 60] = np.random.default_rng(3).normal(size=60) * 1.5
    expected = {token: share for token, share in probabilities(logits[0], parameters).items() if share > 1e-9}
    draws = [Draw(0, parameters, choice, position) for choice in range(10) for position in range(1500)]
    counts = np.bincount(sample(logits, draws), minlength=vocab_size)
    assert set(np.flatnonzero(counts)) <= set(expected)
    statistic = sum(
        (counts[token] - share * len(draws)) ** 2 / (share * len(draws)) for token, share in expected.items()
    )
    freedom = len(expected) - 1
    assert statistic < freedom + 6 * math.sqrt(2 * freedom)


def test_the_generator_is_splitmix64():
    """The published first outputs of the sequence that starts at 0."""
    outputs = [sampling._mix(count * sampling.GOLDEN) for count in (1, 2, 3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("axis", ["seed", "choice", "position"])
def test_uniforms_are_even_and_uncorrelated_along_every_axis(axis):
    count = 20_000
    coordinates = {"seed": 11, "choice": 0, "position": 100}
    values = np.array([uniform(**{**coordinates, axis: step}) for step in range(count)])
    assert values.min() >= 0
    assert values.max() < 1
    cells = np.bincount((values * 100).astype(int), minlength=100)
    assert ((cells - count / 100) ** 2 / (count / 100)).sum() < 99 + 6 * math.sqrt(2 * 99)
    for lag in (1, 2, 7):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 6 / math.sqrt(count)


def test_axes_do_not_repeat_each_other():
    values = {uniform(seed, choice, position) for seed in range(20) for choice in range(20) for position in range(20)}
    assert len(values) == 8000


def test_draws_stay_the_same_for_ever():
    """Answers to seeded requests must survive upgrades: these numbers may never change."""
    assert [uniform(0, 0, 0), uniform(1234, 1, 99), uniform(-1, 0, 5)] == [
        0.6524484863740322,
        0.6253402545109178,
        0.23228166094926395,
    ]
    logits = np.linspace(-2, 2, 50, dtype=np.float32)[None]
    draws = [Draw(0, Sampling(seed=42, top_p=0.9), 0, position) for position in range(8)]
    assert sample(logits, draws) == [39, 48, 49, 44, 46, 31, 49, 41]


weights = st.lists(st.one_of(st.just(0.0), st.floats(0, 1, width=32)), min_size=1, max_size=60)


@given(weights, st.sampled_from([1, 200]), st.floats(0, 1, exclude_max=True))
def test_inversion_finds_the_place(values, repeat, share):
    """Also over many blocks, and at both ends; never a place without weight."""
    array = np.repeat(np.array([*values, 0.5, 0.0], dtype=np.float32), repeat)
    place = sampling._invert(array, share)
    assert array[place] > 0
    before = array[:place].sum(dtype=np.float64)
    whole = array.sum(dtype=np.float64)
    assert before - 1e-9 * whole <= share * whole <= before + float(array[place]) + 1e-9 * whole


@pytest.mark.parametrize("size", [10, 9000])
def test_the_last_of_all_uniforms_still_finds_a_weight(size):
    array = np.full(size, 0.1, dtype=np.float32)
    array[-3:] = 0
    assert sampling._invert(array, 1 - 2**-53) == size - 4


def test_minus_infinity_is_never_drawn():
    logits = np.full((1, 30), -np.inf, dtype=np.float32)
    logits[0, [4, 9]] = 0.0
    for parameters in (
        Sampling(temperature=2),
        Sampling(top_k=20),
        Sampling(top_p=0.9999),
        Sampling(top_p=0.9, min_p=0.1),
    ):
        drawn = set(sample(logits, [Draw(0, parameters, 0, position) for position in range(200)]))
        assert drawn == {4, 9}


def test_several_draws_from_one_row_differ_by_choice():
    logits = np.zeros((2, 1000), dtype=np.float32)
    tokens = sample(logits, [Draw(1, Sampling(), choice, 0) for choice in range(8)])
    assert len(set(tokens)) == 8


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("place", [0, 17, 99])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_mean_nothing_are_an_error(temperature, place, value):
    logits = np.zeros((2, 100), dtype=np.float32)
    logits[1, place] = value
    draw = Draw(1, Sampling(temperature=temperature), 0, 0)
    with pytest.raises(EngineDied, match="not finite"):
        sample(logits, [draw])
    assert len(sample(logits, [draw._replace(row=0)])) == 1


def test_a_row_without_any_token_is_an_error():
    with pytest.raises(EngineDied, match="not finite"):
        sample(np.full((1, 5), -np.inf, dtype=np.float32), [Draw(0, Sampling(), 0, 0)])


def test_nothing_to_draw():
    assert sample(np.zeros((0, 5), dtype=np.float32), []) == []


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 2.0),
        ("typical_p", 0.0),
        ("typical_p", 1.1),
        ("typical_p", math.nan),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(param, value):
    with pytest.raises(InvalidRequest) as caught:
        check(Sampling(**{param: value}))
    assert caught.value.param == param
