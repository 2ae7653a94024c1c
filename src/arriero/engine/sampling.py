"""From logits to the next tokens.

Greedy rows are one argmax over the batch. A row that draws is worked on by itself, in arrays of its own: that
alone makes its result independent of its neighbours, and a row of logits stays in the processor's cache, which
is faster than passing over the whole batch once for every operation.

What a row draws is fixed by the request's seed, the choice's index and the token's position, and by nothing
else (`uniform`), so a request gives the same answer alone or in a crowd, today and after a restart.

The filters keep what transformers' warpers keep, in its order: temperature, top_k, top_p, min_p. Where tokens
tie, top_k keeps every token as probable as the k-th (as transformers does) and top_p prefers the smaller id
(transformers leaves it to its sort). Nothing sorts the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from arriero.core import Sampling
from arriero.errors import EngineDied, InvalidRequest

BLOCK = 64
"""Values that are first reduced to one, their maximum or sum, so that most of a row is read only once."""

COLDEST = 1e-20
"""The least temperature that float32 can divide by without overflow; the best token's share is 1 long before."""

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


def check(sampling: Sampling) -> None:
    """Refuse what no filter can mean, before it reaches a batch.

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


def sample(logits: NDArray[np.float32], draws: Sequence[Draw]) -> list[int]:
    """Choose one token for every draw.

    `logits` is float32 [rows, vocab_size]; several draws may read one row, and a row may go unread.
    -inf marks a token that cannot be chosen.

    Raises:
        EngineDied: a row that is drawn from holds NaN or +inf, or nothing but -inf; no token would mean anything.
    """
    if not draws:
        return []
    best = logits.argmax(axis=1)  # NaN counts as the largest, so looking at the peaks finds it
    peaks = logits[np.arange(len(best)), best]
    if not np.isfinite(peaks).all() and not np.isfinite(peaks[[draw.row for draw in draws]]).all():
        raise EngineDied("The model computed logits that are not finite.")
    tokens: list[int] = best.tolist()
    return [
        tokens[draw.row]
        if draw.sampling.temperature == 0
        else _draw(
            logits[draw.row], peaks[draw.row], draw.sampling, uniform(draw.sampling.seed, draw.choice, draw.position)
        )
        for draw in draws
    ]


def uniform(seed: int, choice: int, position: int) -> float:
    """The number in [0, 1) that decides one draw: 53 bits of a counter-based generator, no state to keep.

    Positions count through a SplitMix64 sequence (Steele, Lea, Flood, "Fast splittable pseudorandom number
    generators", OOPSLA 2014; finaliser by Stafford) whose start is itself drawn by choice index from the one
    that the seed starts. The seed counts modulo 2**64.
    """
    stream = _mix(_mix(seed) + (choice + 1) * GOLDEN)
    return (_mix(stream + (position + 1) * GOLDEN) >> 11) * 2.0**-53


def distribution(logits: NDArray[np.float32], sampling: Sampling) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """What is left of one row after temperature and filters: token ids, ascending, and their weights.

    A weight is the probability over that of the most probable token. Not for temperature 0.
    """
    ids, weights = _filter(logits, logits.max(), sampling)
    return np.arange(len(weights)) if ids is None else ids, weights


def _draw(logits: NDArray[np.float32], peak: np.float32, sampling: Sampling, uniform: float) -> int:
    ids, weights = _filter(logits, peak, sampling)
    place = _invert(weights, uniform)
    return place if ids is None else int(ids[place])


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
    logits: NDArray[np.float32], peak: np.float32, sampling: Sampling
) -> tuple[NDArray[np.intp] | None, NDArray[np.float32]]:
    """The ids that pass, ascending (None when all do), and their weights."""
    ids: NDArray[np.intp] | None = None
    if 0 < sampling.top_k < len(logits):  # dividing by a temperature would keep the order, so this may go first
        ids = _largest(logits, sampling.top_k)
        logits = logits[ids]
    weights: NDArray[np.float32] = np.exp((logits - peak) / np.float32(max(sampling.temperature, COLDEST)))
    if sampling.top_p < 1:
        kept = _nucleus(weights, sampling.top_p)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    if sampling.min_p > 0:
        kept = np.flatnonzero(weights >= np.float32(sampling.min_p))  # the best one's weight is 1
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    return ids, weights


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Places, ascending, of the `count` largest values and of all that equal the last of them."""
    candidates: NDArray[np.intp] = np.arange(len(values))
    if count * BLOCK <= len(values):
        # The count-th largest of the blocks' maxima is a value that `count` values reach.
        maxima = np.maximum.reduceat(values, candidates[::BLOCK])
        candidates = np.flatnonzero(values >= np.partition(maxima, -count)[-count])
    found = values[candidates]
    passing: NDArray[np.intp] = candidates[found >= np.partition(found, -count)[-count]]
    return passing


def _nucleus(weights: NDArray[np.float32], top_p: float) -> NDArray[np.intp]:
    """Places, ascending, of the fewest largest weights that make up `top_p` of the sum; at least one.

    Weights are not negative, so their bits sort as they do: the leading twelve put them into bins, eight to an
    octave, and only the bin in which the sum is reached needs sorting.
    """
    bins = weights.view(np.uint32) >> 20
    from_top = np.bincount(bins, weights)[::-1].cumsum()
    target = top_p * from_top[-1]
    crossing = int(from_top.searchsorted(target))
    last = len(from_top) - 1 - crossing
    edge = np.flatnonzero(bins == last)
    edge = edge[np.argsort(-weights[edge], kind="stable")]  # of equals, the smaller id first
    missing = target - (from_top[crossing - 1] if crossing else 0.0)
    count = int(weights[edge].cumsum(dtype=np.float64).searchsorted(missing)) + 1
    kept = bins > last
    kept[edge[:count]] = True
    return np.flatnonzero(kept)


def _mix(value: int) -> int:
    """SplitMix64's finaliser: every bit of the input moves every bit of the output."""
    value &= MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK64
    return value ^ (value >> 31)
