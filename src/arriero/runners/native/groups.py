"""Operations on rows and weights that have a scale for every group of 32 inputs.

Weights are unsigned integers u of 4 or 8 bits and stand for scale * u + low. A unit of 32 outputs lies as
[inputs / 32] groups behind each other, each of
    [8][16 outputs][4 inputs]      4 bits: the first 16 outputs in the low halves of bytes, the others in the high ones;
    [8][2][16 outputs][4 inputs]   8 bits;
    [2][16 outputs]                scales as halves;
    [2][16 outputs]                lows as halves: 4 bits alone, at 8 bits they are -128 * scale.
Rows are signed bytes, with two floats a group: what its bytes count in, and that times their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types

from arriero.runners.native.instructions import (
    BYTES,
    F32,
    FLOATS,
    HALVES,
    I8,
    I32,
    I64,
    INT,
    INTS,
    Code,
    operation,
)
from arriero.runners.native.plan import GROUP, LANES, UNIT
from arriero.runners.native.vectors import MOST_ROWS

_QUADS = GROUP // 4


@operation(types.void, INT, INT, INT, INT)
def quantise_groups(code: Code, values: ir.Value, groups: ir.Value, out: ir.Value, steps: ir.Value) -> None:
    """Floats, 32 * groups of them, as signed bytes, and two floats a group to `steps`."""
    builder = code.builder
    bytes_of_lane = ir.VectorType(I8, LANES)

    def round_off(index: ir.Value, _: Sequence[ir.Value]) -> list[ir.Value]:
        parts = [
            code.load(values, builder.add(builder.mul(index, _int(4 * GROUP)), _int(64 * n)), FLOATS) for n in (0, 1)
        ]
        magnitudes = [code.call("llvm.fabs.v16f32", FLOATS, [part]) for part in parts]
        largest = code.fold(code.larger(*magnitudes), code.larger)
        step = builder.fdiv(largest, ir.Constant(F32, 127.0))
        some = builder.fcmp_ordered(">", step, ir.Constant(F32, 0.0))
        inverse = builder.select(some, builder.fdiv(ir.Constant(F32, 1.0), step), ir.Constant(F32, 0.0))
        integers = []
        for n, part in enumerate(parts):
            scaled = builder.fmul(part, code.all(inverse, FLOATS))
            rounded = code.clamp(code.call("llvm.rint.v16f32", FLOATS, [scaled]), -127.0, 127.0)
            integers.append(builder.fptosi(rounded, INTS))
            place = builder.add(builder.mul(index, _int(GROUP)), _int(LANES * n))
            code.store(builder.trunc(integers[n], bytes_of_lane), out, place)
        total = builder.sitofp(code.fold(builder.add(*integers), builder.add), F32)
        place = builder.mul(index, _int(8))
        code.store(step, steps, place)
        code.store(builder.fmul(step, total), steps, builder.add(place, _int(4)))
        return []

    code.loop(groups, [], round_off)


def group_bytes(bits: int) -> int:
    """Bytes of a group of a unit: integers, scales, and lows of 4 bits."""
    return UNIT * GROUP * bits // 8 + 2 * UNIT * (2 if bits == 4 else 1)


def _product_of(bits: int) -> Any:
    @operation(types.void, INT, INT, INT, INT, INT, INT, INT, INT)
    def product(
        code: Code,
        rows: ir.Value,
        weights: ir.Value,
        values: ir.Value,
        stride: ir.Value,
        steps: ir.Value,
        steps_stride: ir.Value,
        groups: ir.Value,
        sums: ir.Value,
    ) -> None:
        """Products of at most MOST_ROWS rows and one unit of weights: float32 [rows, 32] to `sums`.

        Rows are 32 * groups signed bytes, `stride` bytes apart, and their floats `steps_stride` bytes apart.
        """
        builder = code.builder

        def write(number: int) -> None:
            def add_group(index: ir.Value, _: Sequence[ir.Value]) -> list[ir.Value]:
                place = builder.add(weights, builder.mul(index, _int(group_bytes(bits))))
                column = builder.add(values, builder.mul(index, _int(GROUP)))
                products = _integer_products(code, bits, number, place, column, stride)
                parameters = builder.add(place, _int(UNIT * GROUP * bits // 8))
                scales = [_halves(code, parameters, half) for half in range(2)]
                if bits == 4:
                    lows = [_halves(code, parameters, 2 + half) for half in range(2)]
                else:
                    lows = [builder.fmul(scale, code.floats(-128.0)) for scale in scales]
                for row in range(number):
                    step_place = builder.add(builder.mul(steps_stride, _int(row)), builder.mul(index, _int(8)))
                    step = code.all(code.load(steps, step_place, F32), FLOATS)
                    total = code.all(code.load(steps, builder.add(step_place, _int(4)), F32), FLOATS)
                    for half in range(2):
                        own = 64 * (2 * row + half)
                        value = builder.fmul(builder.sitofp(products[2 * row + half], FLOATS), step)
                        value = code.multiply_add(value, scales[half], code.load(sums, own, FLOATS))
                        code.store(code.multiply_add(total, lows[half], value), sums, own)
                return []

            for vector in range(2 * number):
                code.store(code.floats(0.0), sums, 64 * vector)
            code.loop(groups, [], add_group)

        code.switch(rows, MOST_ROWS, write)

    return product


def _integer_products(
    code: Code, bits: int, number: int, weights: ir.Value, values: ir.Value, stride: ir.Value
) -> list[ir.Value]:
    """Integer products of one group of `number` rows: two vectors a row."""
    builder = code.builder

    def body(index: ir.Value, sums: Sequence[ir.Value]) -> list[ir.Value]:
        if bits == 4:
            both = builder.bitcast(code.load(weights, builder.mul(index, _int(64)), BYTES, 64), INTS)
            nibbles = ir.Constant(INTS, [0x0F0F0F0F] * LANES)
            high = builder.lshr(both, ir.Constant(INTS, [4] * LANES))
            parts = [builder.bitcast(builder.and_(part, nibbles), BYTES) for part in (both, high)]
        else:
            place = builder.mul(index, _int(128))
            parts = [code.load(weights, builder.add(place, _int(64 * n)), BYTES, 64) for n in range(2)]
        column = builder.add(values, builder.mul(index, _int(4)))
        results: list[ir.Value] = []
        for row in range(number):
            four = code.load(column, builder.mul(stride, _int(row)), I32)
            repeated = builder.bitcast(code.all(four, INTS), BYTES)
            results.extend(code.dot(sums[2 * row + n], parts[n], repeated) for n in range(2))
        return results

    return code.loop(_int(_QUADS), [ir.Constant(INTS, [0] * LANES)] * (2 * number), body)


def _halves(code: Code, address: ir.Value, number: int) -> ir.Value:
    """The vector of halves of that number, as floats."""
    return code.builder.fpext(code.load(address, 2 * LANES * number, HALVES, 32), FLOATS)


def _int(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


product_of_nibbles, product_of_bytes = _product_of(4), _product_of(8)
