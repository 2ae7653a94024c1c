"""Weights as kernels read them; `vectors` has how rows lie, `groups` how groups do and what they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arriero.runners.native.plan import GROUP, LANES, UNIT

_REACHES = (1.0, 0.9, 0.8)
"""Shares of a group's range that its steps are first laid over, before they are fitted to it."""

_CHUNK = 64
"""Outputs at a time: what is computed with stays in the processor's cache."""
_NEAR = 0.02
"""What weights from such groups may lose, of their magnitude; others lose 0.07."""

_Choice = tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]
Quantised = tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16] | None]
"""Integers [out, in]; scales [out, groups]; lows [out, groups], or None where they are -128 scales."""


def quantise_bytes(weight: NDArray[np.float32]) -> Quantised:
    """8 bits around 128, of which the largest magnitude of each group reaches 127."""
    values = weight.reshape(len(weight), -1, GROUP)
    scales = _halves(np.abs(values).max(2) / np.float32(127))
    scales[scales == 0] = 1
    integers = np.clip(np.rint(values / _single(scales)), -128, 127) + 128
    return integers.astype(np.uint8).reshape(weight.shape), scales, None


def quantise_nibbles(weight: NDArray[np.float32]) -> Quantised:
    """4 bits from each group's own low on: of some choices the one that leaves the least squared error.

    What was in such groups before, as in GGUF's Q4_0, Q4_1 and Q4_K, stays as it was to within the rounding of halves.
    """
    parts = [_nibbles(weight[start : start + _CHUNK]) for start in range(0, len(weight), _CHUNK)]
    integers, scales, lows = (np.concatenate(each) for each in zip(*parts, strict=True))
    return integers, scales, lows


def lie_in_groups(weight: NDArray[np.float32]) -> bool:
    """Whether weights [out, in] were integers of 4 bits in such groups before."""
    some = np.pad(weight[:_CHUNK], [(0, 0), (0, -weight.shape[1] % GROUP)])
    values = some.reshape(len(some), -1, GROUP)
    return _is_near(values, _best(values, _ranges(values)))


def _nibbles(weight: NDArray[np.float32]) -> _Choice:
    values = weight.reshape(len(weight), -1, GROUP)
    choice = _best(values, _ranges(values))
    if not _is_near(values, choice):
        choice = _best(values, chain([choice], _fits(values)))
    integers, scales, lows = choice
    return integers.reshape(weight.shape), scales, lows


def _best(values: NDArray[np.float32], choices: Iterator[_Choice]) -> _Choice:
    """For each group the choice of the least error."""
    integers, scales, lows = best = next(choices)
    least = _errors(values, best)
    for choice in choices:
        errors = _errors(values, choice)
        better = errors < least
        least[better] = errors[better]
        integers[better], scales[better], lows[better] = (each[better] for each in choice)
    return best


def _is_near(values: NDArray[np.float32], choice: _Choice) -> bool:
    """Whether weights lose next to nothing, all together."""
    return bool(_errors(values, choice).sum() <= _NEAR**2 * np.square(values).sum())


def _errors(values: NDArray[np.float32], choice: _Choice) -> NDArray[np.float32]:
    """The squared error of each group."""
    integers, scales, lows = choice
    wrong = integers * _single(scales) + _single(lows) - values
    errors: NDArray[np.float32] = np.einsum("ogi,ogi->og", wrong, wrong)
    return errors


def whole_units(outputs: NDArray[Any]) -> NDArray[Any]:
    """The same with zeros behind it: [out, ...], `out` being a multiple of a unit's."""
    return np.pad(outputs, [(0, -len(outputs) % UNIT), *[(0, 0)] * (outputs.ndim - 1)])


def pack_rows(integers: NDArray[np.int8]) -> NDArray[np.int8]:
    """Weights [out, in] in units [out / 32][in / 4][2][16][4], both sides padded with zeros."""
    whole = np.pad(whole_units(integers), [(0, 0), (0, -integers.shape[1] % 4)])
    units = whole.reshape(len(whole) // UNIT, 2, LANES, -1, 4)
    return np.ascontiguousarray(units.transpose(0, 3, 1, 2, 4))


def pack_groups(
    integers: NDArray[np.uint8], scales: NDArray[np.float16], lows: NDArray[np.float16] | None
) -> NDArray[np.uint8]:
    """Weights in units and groups, uint8 [out / 32][groups][bytes], outputs padded with zeros."""
    groups = integers.shape[1] // GROUP
    units = whole_units(integers).reshape(-1, 2, LANES, groups, GROUP // 4, 4).transpose(0, 3, 4, 1, 2, 5)
    if lows is not None:
        units = units[:, :, :, 0] | units[:, :, :, 1] << np.uint8(4)
    parts = [units.reshape(*units.shape[:2], -1)]
    for each in (scales, lows):
        if each is not None:
            halves = np.ascontiguousarray(whole_units(each).reshape(-1, UNIT, groups).transpose(0, 2, 1))
            parts.append(halves.view(np.uint8))
    return np.concatenate(parts, axis=2)


def _ranges(values: NDArray[np.float32]) -> Iterator[_Choice]:
    """Each group's range in 15 steps, and in fewer: as many as a group from a file may have used."""
    least, most = values.min(2), values.max(2)
    for steps in range(15, 7, -1):
        yield _rounded(values, (most - least) / np.float32(steps), least)


def _fits(values: NDArray[np.float32]) -> Iterator[_Choice]:
    """Steps over shares of each group's range, fitted to what is rounded to them."""
    least, most, mean = values.min(2), values.max(2), values.mean(2)
    for reach in _REACHES:
        scale = (most - least) * np.float32(reach / 15)
        low = least + (most - least) * np.float32((1 - reach) / 2)
        for _ in range(2):
            integers, _, _ = _rounded(values, scale, low)
            centre = integers.mean(2, dtype=np.float32)
            spread = integers - centre[..., None]
            squares = np.einsum("ogi,ogi->og", spread, spread)
            scale = np.einsum("ogi,ogi->og", spread, values) / np.where(squares > 0, squares, 1)
            low = mean - scale * centre
        yield _rounded(values, scale, low)


def _rounded(values: NDArray[np.float32], scale: NDArray[np.float32], low: NDArray[np.float32]) -> _Choice:
    """What the numbers of these groups become with a scale and a low."""
    scales, lows = _halves(np.where(scale > 0, scale, 1)), _halves(low)
    steps = values - _single(lows)
    steps /= _single(scales)
    np.rint(steps, out=steps)
    return np.clip(steps, 0, 15, out=steps).astype(np.uint8), scales, lows


def _single(halves: NDArray[np.float16]) -> NDArray[np.float32]:
    """Numbers of groups, for all of each group's inputs."""
    return halves[..., None].astype(np.float32)


def _halves(values: NDArray[np.float32]) -> NDArray[np.float16]:
    reach = np.float32(np.finfo(np.float16).max)
    return np.clip(values, -reach, reach).astype(np.float16)
