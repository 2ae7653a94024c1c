"""Operations on vectors for kernels that numba compiles: what its scalar language has no words for.

Weights of an integer product lie in units of 32 outputs, [inputs / 4][2][16 outputs][4 inputs]: 4 inputs are what one
lane of VNNI's instruction takes at a time.
"""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types  # type: ignore[attr-defined]

from arriero.runners.native.instructions import (
    BYTES,
    F16,
    F32,
    FLOAT,
    FLOATS,
    HALVES,
    I8,
    I32,
    I64,
    INT,
    INTS,
    WIDE,
    Code,
    operation,
)
from arriero.runners.native.machine_code import IS_KEPT
from arriero.runners.native.plan import LANES, SCRATCH_QUERIES, SCRATCH_ROWS

MOST_ROWS = SCRATCH_ROWS if WIDE else 3
"""Rows that a product takes at a time: as many as there are registers for their sums."""
MOST_QUERIES = SCRATCH_QUERIES if WIDE else 2
"""Queries that attention takes at a time."""


@operation(types.void, INT, INT, INT, INT, INT, INT)
def product(
    code: Code,
    rows: ir.Value,
    weights: ir.Value,
    values: ir.Value,
    stride: ir.Value,
    quads: ir.Value,
    out: ir.Value,
) -> None:
    """Integer products of at most MOST_ROWS rows and one unit of weights: int32 [rows, 32] to `out`.

    Rows are 4 * quads unsigned bytes, `stride` bytes apart.
    """
    builder = code.builder

    def write(number: int) -> None:
        def body(index: ir.Value, sums: Sequence[ir.Value]) -> list[ir.Value]:
            place = builder.mul(index, ir.Constant(I64, 128))
            parts = [code.load(weights, builder.add(place, ir.Constant(I64, 64 * n)), BYTES, 64) for n in range(2)]
            column = builder.add(values, builder.mul(index, ir.Constant(I64, 4)))
            results: list[ir.Value] = []
            for row in range(number):
                four = code.load(column, builder.mul(stride, ir.Constant(I64, row)), I32)
                repeated = builder.bitcast(code.all(four, INTS), BYTES)
                results.extend(code.dot(sums[2 * row + n], repeated, parts[n]) for n in range(2))
            return results

        zero = ir.Constant(INTS, [0] * LANES)
        for index, total in enumerate(code.loop(quads, [zero] * (2 * number), body)):
            code.store(total, out, 64 * index)

    code.switch(rows, MOST_ROWS, write)


def key_groups(queries: int) -> int:
    """How many times 16 keys attention takes at a time: enough sums to keep the multipliers busy."""
    return (4 if queries <= 3 else 2) if WIDE else 2


@operation(types.void, INT, INT, INT, INT, INT, INT)
def scores(
    code: Code,
    queries: ir.Value,
    addresses: ir.Value,
    keys: ir.Value,
    size: ir.Value,
    out: ir.Value,
    stride: ir.Value,
) -> None:
    """Products of at most MOST_QUERIES queries and 16 * `key_groups` keys: float32 to `out`, `stride` bytes a query.

    Queries are float32 [size], at the addresses in an int64 array; keys are halves [groups, size, 16].
    """
    builder = code.builder

    def write(number: int) -> None:
        places = [code.load(addresses, 8 * query, I64, 8) for query in range(number)]
        groups = key_groups(number)
        group_bytes = builder.mul(size, ir.Constant(I64, 2 * LANES))

        def body(index: ir.Value, sums: Sequence[ir.Value]) -> list[ir.Value]:
            row = builder.add(keys, builder.mul(index, ir.Constant(I64, 2 * LANES)))
            parts = []
            for group in range(groups):
                halves = code.load(row, builder.mul(group_bytes, ir.Constant(I64, group)), HALVES, 32)
                parts.append(builder.fpext(halves, FLOATS))
            place = builder.mul(index, ir.Constant(I64, 4))
            results: list[ir.Value] = []
            for query in range(number):
                repeated = code.all(code.load(places[query], place, F32), FLOATS)
                results.extend(
                    code.multiply_add(repeated, part, sums[groups * query + group]) for group, part in enumerate(parts)
                )
            return results

        for index, total in enumerate(code.loop(size, [code.floats(0.0)] * (number * groups), body)):
            query, group = divmod(index, groups)
            code.store(
                total, out, builder.add(builder.mul(stride, ir.Constant(I64, query)), ir.Constant(I64, 64 * group))
            )

    code.switch(queries, MOST_QUERIES, write)


@operation(types.void, INT, INT, INT, INT, INT, INT, INT)
def add_values(
    code: Code,
    queries: ir.Value,
    weights: ir.Value,
    stride: ir.Value,
    values: ir.Value,
    size: ir.Value,
    count: ir.Value,
    sums: ir.Value,
) -> None:
    """Add `count` values times their weights to the sums of at most MOST_QUERIES queries.

    Weights are float32 [count], `stride` bytes a query; values halves [count, size]; sums float32 [queries, size].
    """
    builder = code.builder
    quarters = builder.udiv(size, ir.Constant(I64, 4 * LANES))

    def write(number: int) -> None:
        # Four vectors at a time, then what is left of a head's size.
        rest = builder.mul(quarters, ir.Constant(I64, 4 * LANES))
        ones = builder.udiv(builder.sub(size, rest), ir.Constant(I64, LANES))
        for vectors, times, first in ((4, quarters, ir.Constant(I64, 0)), (1, ones, rest)):
            some, after = builder.append_basic_block("some"), builder.append_basic_block("none")
            builder.cbranch(builder.icmp_signed(">", times, ir.Constant(I64, 0)), some, after)
            builder.position_at_end(some)
            code.loop(times, [], functools.partial(columns, number, vectors, first))
            builder.branch(after)
            builder.position_at_end(after)

    def columns(number: int, vectors: int, first: ir.Value, time: ir.Value, _: Sequence[ir.Value]) -> list[ir.Value]:
        column = builder.add(first, builder.mul(time, ir.Constant(I64, LANES * vectors)))
        begin = builder.add(values, builder.mul(column, ir.Constant(I64, 2)))
        total_begin = builder.add(sums, builder.mul(column, ir.Constant(I64, 4)))
        row_bytes, total_bytes = (builder.mul(size, ir.Constant(I64, width)) for width in (2, 4))
        places = [
            (builder.add(total_begin, builder.mul(total_bytes, ir.Constant(I64, query))), 64 * vector)
            for query in range(number)
            for vector in range(vectors)
        ]

        def body(index: ir.Value, totals: Sequence[ir.Value]) -> list[ir.Value]:
            row = builder.add(begin, builder.mul(index, row_bytes))
            parts = [builder.fpext(code.load(row, 32 * n, HALVES, 32), FLOATS) for n in range(vectors)]
            place = builder.add(weights, builder.mul(index, ir.Constant(I64, 4)))
            results: list[ir.Value] = []
            for query in range(number):
                repeated = code.all(code.load(place, builder.mul(stride, ir.Constant(I64, query)), F32), FLOATS)
                results.extend(
                    code.multiply_add(repeated, part, totals[vectors * query + n]) for n, part in enumerate(parts)
                )
            return results

        start = [code.load(address, offset, FLOATS) for address, offset in places]
        for (address, offset), total in zip(places, code.loop(count, start, body), strict=True):
            code.store(total, address, offset)
        return []

    code.switch(queries, MOST_QUERIES, write)


@operation(types.void, INT, INT, INT, FLOAT, INT)
def set_product16(
    code: Code, sums: ir.Value, corrections: ir.Value, scales: ir.Value, step: ir.Value, out: ir.Value
) -> None:
    """16 integer products, without what they have too much, as floats."""
    whole = code.builder.sub(code.load(sums, 0, INTS), code.load(corrections, 0, INTS))
    scale = code.builder.fmul(code.load(scales, 0, FLOATS), code.all(step, FLOATS))
    code.store(code.builder.fmul(code.builder.sitofp(whole, FLOATS), scale), out, 0)


@operation(types.void, INT, INT, INT)
def add16(code: Code, values: ir.Value, others: ir.Value, out: ir.Value) -> None:
    """The sums of 16 floats and 16 others."""
    code.store(code.builder.fadd(code.load(values, 0, FLOATS), code.load(others, 0, FLOATS)), out, 0)


@operation(types.void, INT, INT)
def copy16(code: Code, values: ir.Value, out: ir.Value) -> None:
    """16 floats."""
    code.store(code.load(values, 0, FLOATS), out, 0)


@operation(types.void, INT, INT)
def softmax(code: Code, address: ir.Value, vectors: ir.Value) -> None:
    """Replace floats, 16 * vectors of them, by their softmax."""
    builder = code.builder

    def find(index: ir.Value, values: Sequence[ir.Value]) -> list[ir.Value]:
        return [code.larger(values[0], code.vector(address, index))]

    (largest,) = code.loop(vectors, [code.floats(-math.inf)], find)
    shift = code.all(code.fold(largest, code.larger), FLOATS)

    def raise_e(index: ir.Value, values: Sequence[ir.Value]) -> list[ir.Value]:
        power = code.exp(builder.fsub(code.vector(address, index), shift))
        code.set_vector(power, address, index)
        return [builder.fadd(values[0], power)]

    (total,) = code.loop(vectors, [code.floats(0.0)], raise_e)
    factor = builder.fdiv(ir.Constant(F32, 1.0), code.fold(total, builder.fadd))
    factors = code.all(factor, FLOATS)

    def divide(index: ir.Value, values: Sequence[ir.Value]) -> list[ir.Value]:
        code.set_vector(builder.fmul(code.vector(address, index), factors), address, index)
        return []

    code.loop(vectors, [], divide)


@operation(FLOAT, INT, INT)
def largest(code: Code, address: ir.Value, vectors: ir.Value) -> ir.Value:
    """The largest magnitude of floats, 16 * vectors of them."""

    def find(index: ir.Value, values: Sequence[ir.Value]) -> list[ir.Value]:
        magnitude = code.call("llvm.fabs.v16f32", FLOATS, [code.vector(address, index)])
        return [code.larger(values[0], magnitude)]

    return code.fold(code.loop(vectors, [code.floats(0.0)], find)[0], code.larger)


@operation(FLOAT, INT, INT)
def square_sum(code: Code, address: ir.Value, vectors: ir.Value) -> ir.Value:
    """The sum of the squares of floats, 16 * vectors of them."""

    def add(index: ir.Value, values: Sequence[ir.Value]) -> list[ir.Value]:
        value = code.vector(address, index)
        return [code.multiply_add(value, value, values[0])]

    return code.fold(code.loop(vectors, [code.floats(0.0)], add)[0], code.builder.fadd)


@operation(types.void, INT, INT, FLOAT, INT, INT)
def multiply(
    code: Code, values: ir.Value, factors: ir.Value, factor: ir.Value, out: ir.Value, vectors: ir.Value
) -> None:
    """Floats times others and times one for all, 16 * vectors of them."""
    repeated = code.all(factor, FLOATS)

    def scale(index: ir.Value, _: Sequence[ir.Value]) -> list[ir.Value]:
        scaled = code.builder.fmul(code.vector(values, index), repeated)
        code.set_vector(code.builder.fmul(scaled, code.vector(factors, index)), out, index)
        return []

    code.loop(vectors, [], scale)


@operation(types.void, INT, FLOAT, INT, INT)
def quantise(code: Code, values: ir.Value, inverse_step: ir.Value, out: ir.Value, vectors: ir.Value) -> None:
    """Floats, 16 * vectors of them, as unsigned bytes, 128 standing for 0; what reaches too far is cut."""
    builder = code.builder
    inverse = code.all(inverse_step, FLOATS)

    def round_off(index: ir.Value, _: Sequence[ir.Value]) -> list[ir.Value]:
        scaled = builder.fmul(code.vector(values, index), inverse)
        rounded = code.clamp(code.call("llvm.rint.v16f32", FLOATS, [scaled]), -128.0, 127.0)
        shifted = builder.add(builder.fptosi(rounded, INTS), ir.Constant(INTS, [128] * LANES))
        code.store(builder.trunc(shifted, ir.VectorType(I8, LANES)), out, builder.mul(index, ir.Constant(I64, LANES)))
        return []

    code.loop(vectors, [], round_off)


@operation(types.void, INT, INT, INT)
def swiglu16(code: Code, gates: ir.Value, values: ir.Value, out: ir.Value) -> None:
    """16 floats x * sigmoid(x) * y."""
    builder = code.builder
    gate = code.load(gates, 0, FLOATS)
    sigmoid = builder.fdiv(code.floats(1.0), builder.fadd(code.floats(1.0), code.exp(builder.fneg(gate))))
    code.store(builder.fmul(builder.fmul(gate, sigmoid), code.load(values, 0, FLOATS)), out, 0)


@operation(types.void, INT, FLOAT)
def set_half(code: Code, address: ir.Value, value: ir.Value) -> None:
    """Store a float as a half, kept finite."""
    low, high = (ir.Constant(F32, sign * 65504.0) for sign in (-1, 1))
    bounded = code.call("llvm.maxnum.f32", F32, [value, low])
    bounded = code.call("llvm.minnum.f32", F32, [bounded, high])
    code.builder.store(code.builder.fptrunc(bounded, F16), code.at(address, 0, F16)).align = 2


@operation(types.void, INT, INT)
def set_halves16(code: Code, values: ir.Value, out: ir.Value) -> None:
    """Store 16 floats as halves, kept finite."""
    bounded = code.clamp(code.load(values, 0, FLOATS), -65504.0, 65504.0)
    code.store(code.builder.fptrunc(bounded, HALVES), out, 0)


@operation(INT, INT, INT)
def fetch_add(code: Code, address: ir.Value, amount: ir.Value) -> ir.Value:
    """Add to an int64 that threads share; returns what it was."""
    return code.builder.atomic_rmw("add", code.at(address, 0, I64), amount, "acq_rel")


@operation(INT, INT)
def shared(code: Code, address: ir.Value) -> ir.Value:
    """An int64 that threads share."""
    return code.builder.load_atomic(code.at(address, 0, I64), "acquire", 8)


@operation(types.void, INT, INT)
def set_shared(code: Code, address: ir.Value, value: ir.Value) -> None:
    """Set an int64 that threads share."""
    code.builder.store_atomic(value, code.at(address, 0, I64), "release", 8)


@operation(types.void)
def pause(code: Code) -> None:
    """Tell the processor that this thread waits for another one."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        code.call("llvm.x86.sse2.pause", ir.VoidType(), [])


@operation(INT)
def ticks(code: Code) -> ir.Value:
    """The processor's clock."""
    return code.call("llvm.readcyclecounter", I64, [])


@operation(INT, INT)
def int_at(code: Code, address: ir.Value) -> ir.Value:
    """An int64."""
    return code.load(address, 0, I64, 8)


@operation(types.void, INT, INT)
def set_int(code: Code, address: ir.Value, value: ir.Value) -> None:
    """Set an int64."""
    code.builder.store(value, code.at(address, 0, I64)).align = 8


@operation(types.voidptr, INT)
def _pointer(code: Code, address: ir.Value) -> ir.Value:
    return code.builder.inttoptr(address, I8.as_pointer())


@njit(inline="always", cache=not IS_KEPT)
def floats(address: int, count: int) -> Any:
    """The float32 array at an address."""
    return carray(_pointer(address), (count,), np.float32)


@njit(inline="always", cache=not IS_KEPT)
def integers(address: int, count: int) -> Any:
    """The int64 array at an address."""
    return carray(_pointer(address), (count,), np.int64)
