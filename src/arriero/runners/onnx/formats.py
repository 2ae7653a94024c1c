"""Weight formats: how one linear layer's weights are stored and which operators multiply by them.

    fp32   one MatMul.
    int8   weights one scale per output channel, activations one scale per row, the product exact in
           integers: a row's result depends on nothing but the row, so batches and chunks cannot change it.
    int4   MatMulNBits: weights in blocks along the input, activations quantised inside the kernel.

Layers take rows that are flattened to two dimensions, [rows, in], and give [rows, out]. Rows are made ready
once for all layers that read them (gate and up).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from arriero.runners.onnx.builder import CONTRIB, GraphBuilder, Linear

WeightFormat = Literal["fp32", "int8", "int4"]

ZERO_POINT = 128
"""Of int8 activations, which are unsigned."""
ZERO = np.array(ZERO_POINT, np.uint8)
EVEN_REACH = 4.0
"""The largest magnitude that even rows keep, in standard deviations: about the best for 8 bits and normal values."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Graph values [rows, size] in the form that a format's products read."""

    value: str
    """float32 rows, or the integers they were quantised to."""
    scale: str | None
    """float32 [rows, 1] that products of these rows still lack; None when they lack nothing."""
    original: str
    """The float32 rows that were made ready."""
    original_scale: str | None
    """What those lacked."""
    step: float = 1.0
    """What the integers count in, where it is the same for all rows; products take it in."""
    zero_point: int = ZERO_POINT
    """The integer that stands for `offset`."""
    offset: float = 0.0


class Format(Protocol):
    """How linear layers are computed."""

    variant: str
    """Name of the format and its options: graphs of different variants are different files."""
    smooth: bool
    """True when weights are to be converted to coordinates without outliers first; see `smoothing`."""
    rotated: bool
    """True when these coordinates are to be rotated, where a model's can be; else channels are evened out."""
    invariant: bool
    """True when a row's products depend on that row alone, bit for bit."""

    @property
    def head(self) -> Format:
        """What the vocabulary projection is computed with."""
        ...

    def rows(
        self,
        graph: GraphBuilder,
        value: str,
        *,
        scale: str | None = None,
        zero_points: str = "",
        normed: bool = False,
        least: float | None = None,
    ) -> Rows:
        """Make float rows ready to be multiplied; `scale` is a factor [rows, 1] that they still lack.

        `normed` rows come as a norm leaves them, with a mean square of 1. Rows with a `least` hold nothing smaller
        than this negative number, and nothing that they lack a factor for.
        """
        ...

    def product(self, graph: GraphBuilder, rows: Rows, name: str, weight: NDArray[np.float32]) -> str:
        """Rows [rows, in] times `weight` [out, in] transposed, still lacking `rows.scale`."""
        ...


def linear(graph: GraphBuilder, weights: Format, rows: Rows, name: str, weight: NDArray[np.float32]) -> str:
    """A whole linear layer: [rows, in] to float32 [rows, out]."""
    product = weights.product(graph, rows, name, weight)
    whole = product if rows.scale is None else graph.op("Mul", [product, rows.scale])
    if rows.offset:
        integers, steps = quantise_rows(weight)
        sums = (integers.sum(axis=1) * steps * rows.offset).astype(np.float32)
        whole = graph.op("Add", [whole, graph.constant(f"{name}.offset", sums)])
    graph.linears.append(Linear(name, rows.original, rows.original_scale or "", whole, ""))
    return whole


def unscaled_linear(graph: GraphBuilder, weights: Format, rows: Rows, name: str, weight: NDArray[np.float32]) -> str:
    """A linear layer whose result still lacks `rows.scale`."""
    product = weights.product(graph, rows, name, weight)
    graph.linears.append(Linear(name, rows.original, rows.original_scale or "", product, rows.scale or ""))
    return product


class _FloatRows:
    """The part of a format that reads float rows."""

    def rows(
        self,
        graph: GraphBuilder,
        value: str,
        *,
        scale: str | None = None,
        zero_points: str = "",
        normed: bool = False,
        least: float | None = None,
    ) -> Rows:
        """Rows as they are."""
        return Rows(value, scale, value, scale)


class Fp32(_FloatRows):
    """Plain float32 products."""

    variant = "fp32"
    smooth = False
    rotated = False
    invariant = True

    @property
    def head(self) -> Format:
        """What the vocabulary projection is computed with."""
        return self

    def product(self, graph: GraphBuilder, rows: Rows, name: str, weight: NDArray[np.float32]) -> str:
        """One MatMul."""
        return graph.op("MatMul", [rows.value, graph.constant(name, np.ascontiguousarray(weight.T))])


class Int8:
    """Row-wise int8: absolute maximum of each row, one QuantizeLinear, exact integer products.

    Activations are unsigned with zero point 128 because the fast kernels multiply unsigned by signed.
    Where those kernels saturate their 16-bit intermediate sums (AVX2 without VNNI), weights are stored
    unsigned too, for which the kernels are exact; both give the same numbers.
    """

    smooth = True
    rotated = True
    invariant = True

    def __init__(self, *, signed_weights: bool, even: bool = False) -> None:
        """`even` says that the channels of normed rows are all alike: the model is in rotated coordinates."""
        self.variant = f"int8-{'signed' if signed_weights else 'unsigned'}{'-even' if even else ''}"
        self.signed_weights = signed_weights
        self.even = even

    @property
    def head(self) -> Format:
        """What the vocabulary projection is computed with."""
        return self

    def rows(
        self,
        graph: GraphBuilder,
        value: str,
        *,
        scale: str | None = None,
        zero_points: str = "",
        normed: bool = False,
        least: float | None = None,
    ) -> Rows:
        """Quantise each row to its own range; `zero_points` names uint8 [rows], 128 each.

        Even rows need no range of their own, which spares the operators that find it and put it back.
        """
        if normed and self.even:
            even_step = np.array(EVEN_REACH / 127, np.float32)
            constants = [graph.shared("even_step", even_step), graph.shared(f"zero_point_{ZERO_POINT}", ZERO)]
            return Rows(graph.op("QuantizeLinear", [value, *constants]), scale, value, scale, float(even_step))
        if least is not None:
            return self._rows_above(graph, value, least)
        largest = graph.op("ReduceMax", [graph.op("Abs", [value])], ints=[1], keepdims=1)
        step = graph.op("Mul", [largest, graph.shared("int8_range", np.array(1 / 127, np.float32))])
        # A row of zeros has step 0: it is quantised to some integers, and those times 0 are 0 again.
        flat = graph.op("Reshape", [step], ints=[-1])
        integers = graph.op("QuantizeLinear", [value, flat, zero_points], axis=0)
        return Rows(integers, step if scale is None else graph.op("Mul", [step, scale]), value, scale)

    def _rows_above(self, graph: GraphBuilder, value: str, least: float) -> Rows:
        """Rows whose integers begin at `least`: what activation functions leave reaches far on one side only."""
        lowest = graph.shared(f"least_{least}", np.array(least, np.float32))
        raised = graph.op("Sub", [value, lowest])
        largest = graph.op("ReduceMax", [raised], ints=[1], keepdims=1)
        step = graph.op("Mul", [largest, graph.shared("uint8_range", np.array(1 / 255, np.float32))])
        integers = graph.op("QuantizeLinear", [raised, graph.op("Reshape", [step], ints=[-1])], axis=0)
        return Rows(integers, step, value, None, zero_point=0, offset=least)

    def product(self, graph: GraphBuilder, rows: Rows, name: str, weight: NDArray[np.float32]) -> str:
        """Exact integer product; each output channel has a scale of its own."""
        integers, scale = quantise_rows(weight)
        stored = integers.astype(np.int8) if self.signed_weights else (integers + 128).astype(np.uint8)
        zero_point = np.int8(0) if self.signed_weights else np.uint8(128)
        return graph.op(
            "MatMulIntegerToFloat",
            [
                rows.value,
                graph.constant(f"{name}.integers", np.ascontiguousarray(stored.T)),
                graph.shared("one", np.array(1, np.float32)),
                graph.constant(f"{name}.scale", (scale * np.float32(rows.step)).astype(np.float32)),
                graph.shared(f"zero_point_{rows.zero_point}", np.array(rows.zero_point, np.uint8)),
                graph.shared("weight_zero_point", np.array(zero_point)),
            ],
            domain=CONTRIB,
        )


class Blockwise(_FloatRows):
    """MatMulNBits: blocks of 64 weights with a scale, activations quantised inside the kernel.

    The vocabulary projection has 8 bits a weight, as in llama.cpp's 4-bit files: at 4 it costs more quality than
    all else. Fast at one row; a row's result may depend on its batch, so it is never chosen by itself.
    """

    # Channels that are evened out lose in blocks of 64 little more than others in blocks of 32, of which the scales are
    # a fifth of what a step reads (docs/adr/0002). Rotated weights lose more: each block is as wide as any other.
    smooth = True
    rotated = False
    invariant = False

    def __init__(self, *, bits: Literal[4, 8] = 4, block: int = 64) -> None:
        self.variant = f"int{bits}-{block}"
        self.bits = bits
        self.block = block

    @property
    def head(self) -> Format:
        """What the vocabulary projection is computed with."""
        return Blockwise(bits=8, block=self.block)

    def product(self, graph: GraphBuilder, rows: Rows, name: str, weight: NDArray[np.float32]) -> str:
        """One MatMulNBits."""
        arrays: list[NDArray[Any]] = []
        if self.bits == 4:
            arrays.extend(quantise_blocks(weight, self.block))
        else:
            arrays.extend(quantise_blocks_symmetric(weight, self.block))
        parts = zip(("packed", "scales", "zeros"), arrays, strict=False)
        return graph.op(
            "MatMulNBits",
            [rows.value, *(graph.constant(f"{name}.{part}", array) for part, array in parts)],
            domain=CONTRIB,
            K=weight.shape[1],
            N=weight.shape[0],
            bits=self.bits,
            block_size=self.block,
            accuracy_level=4,
        )


def quantise_rows(weight: NDArray[np.float32]) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """8-bit integers of [out, in], from -127 to 127, and the step of each output channel, [out]."""
    scale = np.abs(weight).max(axis=1) / np.float32(127)
    scale[scale == 0] = 1
    return np.rint(weight / scale[:, None]).astype(np.int16), scale


def quantise_blocks_symmetric(weight: NDArray[np.float32], block: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """8-bit quantisation of [out, in] in blocks along the input around the fixed zero point 128, for MatMulNBits.

    Returns values [out, blocks, block] and scales [out, blocks]. The input is padded to whole blocks.
    """
    values = _blocks(weight, block)
    scales = np.abs(values).max(2) / np.float32(127)
    scales[scales == 0] = 1
    return (np.rint(values / scales[..., None]) + 128).astype(np.uint8), scales


def quantise_blocks(
    weight: NDArray[np.float32], block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Asymmetric 4-bit quantisation of [out, in] in blocks along the input, in MatMulNBits' layout.

    Returns packed values [out, blocks, block / 2] (low nibble first), scales [out, blocks] and zero points
    [out, ceil(blocks / 2)] packed alike. The input is padded to whole blocks. A zero point must be an integer,
    so it is chosen first, from those beside the ideal one, and the scale is fitted to it.
    """
    values = _blocks(weight, block)
    low, high = values.min(2), values.max(2)
    ideal = np.clip(-low * 15 / np.maximum(high - low, 1e-12), 0, 15)
    best = _fit(values, low, high, np.floor(ideal), 1.0)
    for zero, shrink in ((np.floor(ideal), 0.9), (np.ceil(ideal), 1.0), (np.ceil(ideal), 0.9)):
        fit = _fit(values, low, high, zero, shrink)
        better = fit.error < best.error
        best = _Fit(*(np.where(better, new, old) for new, old in zip(fit, best, strict=True)))
    quantised = _integers(values, best.scale, best.zero).astype(np.uint8)
    zeros = best.zero.astype(np.uint8)
    if zeros.shape[1] % 2:
        zeros = np.pad(zeros, [(0, 0), (0, 1)])
    return _pack(quantised), best.scale, _pack(zeros)


def _blocks(weight: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """[out, in] as [out, blocks, block], the input padded with zeros."""
    padded = np.pad(weight, [(0, 0), (0, -weight.shape[1] % block)])
    return padded.reshape(len(weight), -1, block)


def _pack(nibbles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two to a byte along the last axis, the first one low."""
    packed: NDArray[np.uint8] = nibbles[..., 0::2] | (nibbles[..., 1::2] << np.uint8(4))
    return packed


class _Fit(NamedTuple):
    """Scale and zero point of every block, float32 [out, blocks], and the squared error they leave."""

    scale: NDArray[np.float32]
    zero: NDArray[np.float32]
    error: NDArray[np.float32]


def _fit(
    values: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    zero: NDArray[np.float32],
    shrink: float,
) -> _Fit:
    """The least-squares scale for given zero points, found from one that reaches `shrink` of the range."""
    reach = np.maximum(high / np.maximum(15 - zero, 0.5), -low / np.maximum(zero, 0.5))
    scale = np.where(reach > 0, reach * np.float32(shrink), 1).astype(np.float32)
    for _ in range(2):
        steps = _integers(values, scale, zero) - zero[..., None]
        squares, products = (steps * steps).sum(2), (steps * values).sum(2)
        scale = np.where(products > 0, products / np.maximum(squares, 1), scale)
    error = (((_integers(values, scale, zero) - zero[..., None]) * scale[..., None] - values) ** 2).sum(2)
    return _Fit(scale, zero.astype(np.float32), error)


def _integers(
    values: NDArray[np.float32], scale: NDArray[np.float32], zero: NDArray[np.float32]
) -> NDArray[np.float32]:
    integers: NDArray[np.float32] = np.clip(np.rint(values / scale[..., None]) + zero[..., None], 0, 15)
    return integers
