"""From logits to the next tokens.

Every row is worked on by itself, in arrays of its own: that alone makes its result independent of its neighbours,
and a row of logits stays in the processor's cache, which is faster than passing over the whole batch once for every
operation. A greedy row costs one argmax, and what others ask for costs it nothing.

What a row draws is fixed by the request's seed, the choice's index and the token's position, and by nothing
else (`uniform`), so a request gives the same answer alone or in a crowd, today and after a restart.

The filters keep what transformers' warpers keep, in its order: temperature, top_k, top_p, min_p,
typical_p. Where tokens tie, top_k and typical_p keep all that equal the last one kept (as transformers does) and
top_p prefers the smaller id (transformers leaves it to its sort). Nothing sorts the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from arriero.core import Sampling
from arriero.engine import processors
from arriero.engine.processors import Processors
from arriero.errors import EngineDied, InvalidRequest

BLOCK = 64
"""Values that are first reduced to one, their maximum or sum, so that most of a row is read only once."""

COLDEST = 1e-20
"""The least temperature that float32 can divide by without overflow; the best token's share is 1 long before."""

_NOT_FINITE = "The model computed logits that are not finite."

MASK64 = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


class Draw(NamedTuple):
    """One token to choose: from which row of the logits, how, and for which place in which choice."""

    row: int
    sampling: Sampling
    choice: int
    """The choice's index in its request."""
    position: int
    """The token's place in the sequence, the prompt included."""
    processors: Processors | None = None
    tokens: Sequence[int] = ()
    """Prompt and answer so far, for the processors."""
    logprobs: int | None = None
    """How many of the most probable tokens to report beside the drawn one, if anything."""


def check(sampling: Sampling) -> None:
    """Refuse what no processor or filter can mean, before it reaches a batch.

    Raises:
        InvalidRequest: naming the parameter.
    """
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise InvalidRequest("temperature must be a finite number, at least 0.", param="temperature")
    if sampling.top_k < 0:
        raise InvalidRequest("top_k must be at least 0.", param="top_k")
    if not 0 <= sampling.top_p <= 1:
        raise InvalidRequest("top_p must be between 0 and 1.", param="top_p")
    if not 0 <= sampling.min_p <= 1:
        raise InvalidRequest("min_p must be between 0 and 1.", param="min_p")
    if not 0 < sampling.typical_p <= 1:
        raise InvalidRequest("typical_p must be above 0 and at most 1.", param="typical_p")
    processors.check(sampling)


def sample(logits: NDArray[np.float32], draws: Sequence[Draw]) -> list[int]:
    """Choose one token for every draw.

    `logits` is float32 [rows, vocab_size]; several draws may read one row, and a row may go unread.
    -inf marks a token that cannot be chosen.

    Raises:
        EngineDied: a row that is drawn from holds NaN or +inf, or nothing but -inf; no token would mean anything.
    """
    if 1 < len(draws) == len(logits) and all(draw.sampling.temperature == 0 and not draw.processors for draw in draws):
        return _peaks(logits, [draw.row for draw in draws])
    return [_choose(logits[draw.row], draw) for draw in draws]


def _peaks(logits: NDArray[np.float32], rows: list[int]) -> list[int]:
    """As `finite_peak` of each row, in one call for all."""
    best = logits.argmax(axis=1)[rows]
    if not np.isfinite(logits[rows, best]).all():
        raise EngineDied(_NOT_FINITE)
    tokens: list[int] = best.tolist()
    return tokens


def uniform(seed: int, choice: int, position: int) -> float:
    """The number in [0, 1) that decides one draw: 53 bits of a counter-based generator, no state to keep.

    Positions count through a SplitMix64 sequence (Steele, Lea, Flood, "Fast splittable pseudorandom number
    generators", OOPSLA 2014; finaliser by Stafford) whose start is itself drawn by choice index from the one
    that the seed starts. The seed counts modulo 2**64.
    """
    stream = _mix(_mix(seed) + (choice + 1) * GOLDEN)
    return (_mix(stream + (position + 1) * GOLDEN) >> 11) * 2.0**-53


def uniforms(seed: int, choice: int, position: int, count: int) -> list[float]:
    """Several such numbers for one place, from the sequence that starts with what decides a single draw."""
    start = _mix(_mix(_mix(seed) + (choice + 1) * GOLDEN) + (position + 1) * GOLDEN)
    return [(_mix(start + (place + 1) * GOLDEN) >> 11) * 2.0**-53 for place in range(count)]


def distribution(logits: NDArray[np.float32], sampling: Sampling) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """What is left of one row after temperature and filters: token ids, ascending, and their weights.

    A weight is the probability over that of the most probable token. Not for temperature 0.
    """
    ids, weights = _filter(logits, logits.max(), sampling)
    return np.arange(len(weights)) if ids is None else ids, weights


def keep(logits: NDArray[np.float32], sampling: Sampling, least: int) -> NDArray[np.intp]:
    """The token ids, ascending, that temperature and filters leave of a row, each filter at least `least`."""
    ids, weights = _filter(logits, logits.max(), sampling, least)
    return np.arange(len(weights)) if ids is None else ids


def _choose(logits: NDArray[np.float32], draw: Draw) -> int:
    if draw.processors:
        logits = draw.processors.apply(logits, draw.tokens)
    best = finite_peak(logits)
    if draw.sampling.temperature == 0:
        return best
    ids, weights = _filter(logits, logits[best], draw.sampling)
    place = _invert(weights, uniform(draw.sampling.seed, draw.choice, draw.position))
    return place if ids is None else int(ids[place])


def finite_peak(logits: NDArray[np.float32]) -> int:
    """Where a row has its largest value, the smallest id among equals; raises `EngineDied` when it is not finite."""
    best = int(logits.argmax())  # NaN counts as the largest, so looking at the peak finds it
    if not math.isfinite(logits[best]):
        raise EngineDied(_NOT_FINITE)
    return best


def draw_distinct(weights: NDArray[np.float32], uniforms: Sequence[float]) -> list[int]:
    """Places drawn one after another without replacement, one for each number in [0, 1) while there is weight left."""
    weights = weights.copy()
    places: list[int] = []
    for number in uniforms:
        if not weights.any():
            break
        places.append(_invert(weights, number))
        weights[places[-1]] = 0
    return places


def _invert(weights: NDArray[np.float32], uniform: float) -> int:
    """The place where the cumulative weight passes `uniform` of the whole: the inverse of the distribution.

    Places count from the first to the last, whatever their weights. Many are summed by blocks first.
    """
    if len(weights) <= BLOCK * BLOCK:
        cumulative = weights.cumsum(dtype=np.float64)
        return _first_above(cumulative, uniform * float(cumulative[-1]))
    cumulative = np.add.reduceat(weights, np.arange(0, len(weights), BLOCK), dtype=np.float64).cumsum()
    target = uniform * float(cumulative[-1])
    block = _first_above(cumulative, target)
    start = block * BLOCK
    within = weights[start : start + BLOCK].cumsum(dtype=np.float64)
    return start + _first_above(within, target - (float(cumulative[block - 1]) if block else 0.0))


def _first_above(cumulative: NDArray[np.float64], target: float) -> int:
    """The first place whose cumulative weight is above `target`; it always has a weight of its own.

    Rounding may put the target on the very end; there it belongs to the last place that has a weight.
    """
    return int(cumulative.searchsorted(min(target, math.nextafter(float(cumulative[-1]), 0.0)), side="right"))


def _filter(
    logits: NDArray[np.float32], peak: np.float32, sampling: Sampling, least: int = 1
) -> tuple[NDArray[np.intp] | None, NDArray[np.float32]]:
    """The ids that pass, ascending (None when all do), and their weights. Every filter lets `least` tokens pass."""
    ids: NDArray[np.intp] | None = None
    if sampling.top_k > 0 and max(sampling.top_k, least) < len(logits):
        ids = largest(logits, max(sampling.top_k, least))  # a temperature keeps the order, so this may go first
        logits = logits[ids]
    weights: NDArray[np.float32] = np.exp((logits - peak) / np.float32(max(sampling.temperature, COLDEST)))
    if sampling.top_p < 1:
        kept = _nucleus(weights, sampling.top_p, least)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    if sampling.min_p > 0:
        kept = _probable(weights, sampling.min_p, least)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    if sampling.typical_p < 1:
        kept = _typical(weights, sampling.typical_p, least)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    return ids, weights


def largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Places, ascending, of the `count` largest values and of all that equal the last of them."""
    candidates: NDArray[np.intp] = np.arange(len(values))
    if count * BLOCK <= len(values):
        # The count-th largest of the blocks' maxima is a value that `count` values reach.
        maxima = np.maximum.reduceat(values, candidates[::BLOCK])
        candidates = np.flatnonzero(values >= np.partition(maxima, -count)[-count])
    found = values[candidates]
    passing: NDArray[np.intp] = candidates[found >= np.partition(found, -count)[-count]]
    return passing


def _nucleus(weights: NDArray[np.float32], top_p: float, least: int) -> NDArray[np.intp]:
    """Places, ascending, of the fewest largest weights that make up `top_p` of the sum; at least `least`."""
    return np.sort(_leading(~weights.view(np.uint32), weights, top_p, least))


def _probable(weights: NDArray[np.float32], min_p: float, least: int) -> NDArray[np.intp]:
    """Places, ascending, of the weights that reach `min_p` times the largest, which is 1; at least `least`."""
    kept = np.flatnonzero(weights >= np.float32(min_p))
    return kept if len(kept) >= least else np.sort(_first(~weights.view(np.uint32), least))


def _typical(weights: NDArray[np.float32], typical_p: float, least: int) -> NDArray[np.intp]:
    """Places, ascending, of the weights whose surprise is nearest to the expected one, up to `typical_p` of the sum.

    A surprise is a negative logarithm; the sum of weights moves both it and its expectation alike. At least `least`
    weights, and all that are as near as the last of them.
    """
    alive = np.flatnonzero(weights)
    weights = weights[alive]
    logarithms = np.log(weights)
    expected = np.average(logarithms.astype(np.float64), weights=weights)
    ranks = np.abs(logarithms - np.float32(expected)).view(np.uint32)
    last = ranks[_leading(ranks, weights, typical_p, least)[-1]]
    kept: NDArray[np.intp] = alive[ranks <= last]
    return kept


def _leading(ranks: NDArray[np.uint32], weights: NDArray[np.float32], share: float, least: int) -> NDArray[np.intp]:
    """The fewest places of the smallest ranks whose weights make up `share` of the sum; at least `least`.

    Of equal ranks the smaller place goes first; the last one is last in the result.

    Ranks are the bits of floats that are not negative, which sort as these do, or their complements: the leading
    twelve put them into bins, eight to an octave, and only the bin in which the sum is reached needs sorting.
    """
    bins = ranks >> 20
    cumulative = np.bincount(bins, weights).cumsum()
    target = share * cumulative[-1]
    crossing = max(int(cumulative.searchsorted(target)), int(bins.min()))
    edge = np.flatnonzero(bins == crossing)
    edge = edge[np.argsort(ranks[edge], kind="stable")]
    missing = target - (cumulative[crossing - 1] if crossing else 0.0)
    count = int(weights[edge].cumsum(dtype=np.float64).searchsorted(missing)) + 1
    places = np.concatenate([np.flatnonzero(bins < crossing), edge[:count]])
    return places if len(places) >= least else _first(ranks, least)


def _first(ranks: NDArray[np.uint32], count: int) -> NDArray[np.intp]:
    """The places of the `count` smallest ranks in their order, of equals the smaller place first."""
    count = min(count, len(ranks))
    candidates = np.flatnonzero(ranks <= np.partition(ranks, count - 1)[count - 1])
    return candidates[np.argsort(ranks[candidates], kind="stable")][:count]


def _mix(value: int) -> int:
    """SplitMix64's finaliser: every bit of the input moves every bit of the output."""
    value &= MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK64
    return value ^ (value >> 31)
