"""Operations on short vectors, for kernels that numba compiles: what its scalar language has no words for.

Each is a few LLVM instructions that become part of the kernel that names it. Addresses are int64. A vector has
16 elements: one AVX-512 register, or two of AVX2's, which LLVM splits by itself.

Weights of an integer product lie in units of 32 outputs, [inputs / 4][2][16 outputs][4 inputs]: 4 inputs
are what one lane of VNNI's instruction takes at a time.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

LANES = 16
UNIT = 32
"""Outputs that a product computes at a time."""

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F16, _F32 = ir.HalfType(), ir.FloatType()
_BYTES = ir.VectorType(_I8, 64)
_INTS = ir.VectorType(_I32, LANES)
_FLOATS = ir.VectorType(_F32, LANES)
_HALVES = ir.VectorType(_F16, LANES)

_FEATURES = llvmlite.binding.get_host_cpu_features()
_VNNI = bool(_FEATURES.get("avx512vnni"))
WIDE = bool(_FEATURES.get("avx512f"))
"""Whether the processor has 32 registers for whole vectors."""
MOST_ROWS = 12 if WIDE else 3
"""Rows that a product takes at a time: as many as there are registers for their sums."""
MOST_QUERIES = 6 if WIDE else 2
"""Queries that attention takes at a time."""


class _Code:
    """Writes vector instructions at the builder's place."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def at(self, address: ir.Value, offset: ir.Value | int, kind: ir.Type) -> ir.Value:
        """A pointer to `offset` bytes behind an address."""
        offset = ir.Constant(_I64, offset) if isinstance(offset, int) else offset
        return self.builder.inttoptr(self.builder.add(address, offset), kind.as_pointer())

    def load(self, address: ir.Value, offset: ir.Value | int, kind: ir.Type, align: int = 4) -> ir.Value:
        value = self.builder.load(self.at(address, offset, kind))
        value.align = align
        return value

    def store(self, value: ir.Value, address: ir.Value, offset: ir.Value | int) -> None:
        self.builder.store(value, self.at(address, offset, value.type)).align = 4

    def all(self, value: ir.Value, kind: ir.VectorType) -> ir.Value:
        """A vector that has a scalar in every lane."""
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(_I32, 0))
        lanes = ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count)
        return self.builder.shuffle_vector(first, undefined, lanes)

    def floats(self, value: float) -> ir.Constant:
        return ir.Constant(_FLOATS, [value] * LANES)

    def call(self, name: str, result: ir.Type, arguments: Sequence[ir.Value]) -> ir.Value:
        """Call one of LLVM's own functions."""
        module = self.builder.module
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(result, [each.type for each in arguments]), name)
        return self.builder.call(function, list(arguments))

    def multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return self.call("llvm.fma.v16f32", _FLOATS, [a, b, c])

    def clamp(self, value: ir.Value, low: float, high: float) -> ir.Value:
        raised = self.call("llvm.maxnum.v16f32", _FLOATS, [value, self.floats(low)])
        return self.call("llvm.minnum.v16f32", _FLOATS, [raised, self.floats(high)])

    def fold(self, value: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
        """All lanes as one scalar, halves first."""
        lanes = LANES
        while lanes > 1:
            lanes //= 2
            order = ir.Constant(ir.VectorType(_I32, LANES), [(lane + lanes) % LANES for lane in range(LANES)])
            value = combine(value, self.builder.shuffle_vector(value, value, order))
        return self.builder.extract_element(value, ir.Constant(_I32, 0))

    def larger(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.call("llvm.maxnum.v16f32", _FLOATS, [a, b])

    def vector(self, address: ir.Value, index: ir.Value) -> ir.Value:
        """The float vector of that number behind an address."""
        return self.load(address, self.builder.mul(index, ir.Constant(_I64, 4 * LANES)), _FLOATS)

    def set_vector(self, value: ir.Value, address: ir.Value, index: ir.Value) -> None:
        self.store(value, address, self.builder.mul(index, ir.Constant(_I64, 4 * LANES)))

    def loop(
        self,
        count: ir.Value,
        start: Sequence[ir.Value],
        body: Callable[[ir.Value, Sequence[ir.Value]], Sequence[ir.Value]],
    ) -> list[ir.Value]:
        """Run `body(index, values)` `count` times, at least once; it returns the values of the next time."""
        builder = self.builder
        before = builder.block
        inside, after = builder.append_basic_block("again"), builder.append_basic_block("done")
        builder.branch(inside)
        builder.position_at_end(inside)
        index = builder.phi(_I64)
        index.add_incoming(ir.Constant(_I64, 0), before)
        values = [builder.phi(each.type) for each in start]
        for value, each in zip(values, start, strict=True):
            value.add_incoming(each, before)
        results = body(index, values)
        following = builder.add(index, ir.Constant(_I64, 1))
        index.add_incoming(following, builder.block)
        for value, each in zip(values, results, strict=True):
            value.add_incoming(each, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
        builder.position_at_end(after)
        return list(results)

    def switch(self, value: ir.Value, most: int, write: Callable[[int], None]) -> None:
        """Code for every value from 1 to `most`; a larger one is taken for `most`."""
        builder = self.builder
        after = builder.append_basic_block("after")
        blocks = [builder.append_basic_block(f"case{number}") for number in range(1, most + 1)]
        branch = builder.switch(value, blocks[-1])
        for number, block in enumerate(blocks, 1):
            branch.add_case(ir.Constant(_I64, number), block)
            builder.position_at_end(block)
            write(number)
            builder.branch(after)
        builder.position_at_end(after)

    def dot(self, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
        """Sums of int32 plus, in each lane, the products of 4 unsigned and 4 signed bytes; exact."""
        if _VNNI:
            return self.call("llvm.x86.avx512.vpdpbusd.512", _INTS, [total, unsigned, signed])
        wide = ir.VectorType(_I32, 64)
        products = self.builder.mul(self.builder.zext(unsigned, wide), self.builder.sext(signed, wide))
        for part in range(4):
            lanes = ir.Constant(ir.VectorType(_I32, LANES), [4 * lane + part for lane in range(LANES)])
            undefined = ir.Constant(wide, ir.Undefined)
            total = self.builder.add(total, self.builder.shuffle_vector(products, undefined, lanes))
        return total

    def exp(self, value: ir.Value) -> ir.Value:
        """e to the power of each lane: 2 ** n * p(r), where r is what is left of value / ln 2 beside the integer n.

        p is the polynomial of Cephes' expf: a relative error of 2e-7. Exactly 1 at 0; 0 at and below -88.
        """
        builder = self.builder
        bounded = self.clamp(value, -88.0, 88.0)
        n = self.call("llvm.rint.v16f32", _FLOATS, [builder.fmul(bounded, self.floats(1.4426950408889634))])
        rest = self.multiply_add(n, self.floats(-0.693359375), bounded)
        rest = self.multiply_add(n, self.floats(2.12194440e-4), rest)
        power = self.floats(1.9875691500e-4)
        for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            power = self.multiply_add(power, rest, self.floats(coefficient))
        power = self.multiply_add(builder.fmul(power, rest), rest, builder.fadd(rest, self.floats(1.0)))
        exponent = builder.add(builder.fptosi(n, _INTS), ir.Constant(_INTS, [127] * LANES))
        scale = builder.bitcast(builder.shl(exponent, ir.Constant(_INTS, [23] * LANES)), _FLOATS)
        return builder.select(
            builder.fcmp_ordered(">", value, self.floats(-88.0)), builder.fmul(power, scale), self.floats(0.0)
        )


def _operation(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make an operation for kernels of `write(code, *values)`, which writes it and returns the result's value."""

    def make(write: Callable[..., Any]) -> Any:
        signature = result(*arguments)

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[ir.Value]) -> Any:
            value = write(_Code(builder), *values)
            return context.get_dummy_value() if value is None else value

        def operation(typing: Any, *values: Any) -> Any:
            return signature, generate

        names = ["typing", *(f"a{index}" for index in range(len(arguments)))]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        operation.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
        operation.__doc__ = write.__doc__
        return intrinsic(operation)

    return make


_int, _float = types.int64, types.float32


@_operation(types.void, _int, _int, _int, _int, _int, _int)
def product(
    code: _Code,
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
            place = builder.mul(index, ir.Constant(_I64, 128))
            parts = [code.load(weights, builder.add(place, ir.Constant(_I64, 64 * n)), _BYTES, 64) for n in range(2)]
            column = builder.add(values, builder.mul(index, ir.Constant(_I64, 4)))
            results = []
            for row in range(number):
                four = code.load(column, builder.mul(stride, ir.Constant(_I64, row)), _I32)
                repeated = builder.bitcast(code.all(four, _INTS), _BYTES)
                results.extend(code.dot(sums[2 * row + n], repeated, parts[n]) for n in range(2))
            return results

        zero = ir.Constant(_INTS, [0] * LANES)
        for index, total in enumerate(code.loop(quads, [zero] * (2 * number), body)):
            code.store(total, out, 64 * index)

    code.switch(rows, MOST_ROWS, write)


def key_groups(queries: int) -> int:
    """How many times 16 keys attention takes at a time: enough sums to keep the multipliers busy."""
    return (4 if queries <= 3 else 2) if WIDE else 2


@_operation(types.void, _int, _int, _int, _int, _int, _int)
def scores(
    code: _Code,
    queries: ir.Value,
    addresses: ir.Value,
    keys: ir.Value,
    size: ir.Value,
    out: ir.Value,
    stride: ir.Value,
) -> None:
    """Products of at most MOST_QUERIES queries and 16 * `key_groups` keys: float32 to `out`, queries `stride` bytes apart.

    Queries are float32 [size], at the addresses in an int64 array; keys are halves [groups, size, 16].
    """
    builder = code.builder

    def write(number: int) -> None:
        places = [code.load(addresses, 8 * query, _I64, 8) for query in range(number)]
        groups = key_groups(number)
        group_bytes = builder.mul(size, ir.Constant(_I64, 2 * LANES))

        def body(index: ir.Value, sums: Sequence[ir.Value]) -> list[ir.Value]:
            row = builder.add(keys, builder.mul(index, ir.Constant(_I64, 2 * LANES)))
            parts = []
            for group in range(groups):
                halves = code.load(row, builder.mul(group_bytes, ir.Constant(_I64, group)), _HALVES, 32)
                parts.append(builder.fpext(halves, _FLOATS))
            place = builder.mul(index, ir.Constant(_I64, 4))
            results = []
            for query in range(number):
                repeated = code.all(code.load(places[query], place, _F32), _FLOATS)
                results.extend(
                    code.multiply_add(repeated, part, sums[groups * query + group]) for group, part in enumerate(parts)
                )
            return results

        for index, total in enumerate(code.loop(size, [code.floats(0.0)] * (number * groups), body)):
            query, group = divmod(index, groups)
            code.store(total, out, builder.add(builder.mul(stride, ir.Constant(_I64, query)), ir.Constant(_I64, 64 * group)))

    code.switch(queries, MOST_QUERIES, write)


@_operation(types.void, _int, _int, _int, _int, _int, _int, _int)
def add_values(
    code: _Code,
    queries: ir.Value,
    weights: ir.Value,
    stride: ir.Value,
    values: ir.Value,
    size: ir.Value,
    count: ir.Value,
    sums: ir.Value,
) -> None:
    """Add `count` values times their weights to the sums of at most MOST_QUERIES queries.

    Weights are float32 [count], queries `stride` bytes apart; values halves [count, size]; sums float32 [queries, size].
    """
    builder = code.builder
    quarters = builder.udiv(size, ir.Constant(_I64, 4 * LANES))

    def write(number: int) -> None:
        # Four vectors at a time, then what is left of a head's size.
        rest = builder.mul(quarters, ir.Constant(_I64, 4 * LANES))
        ones = builder.udiv(builder.sub(size, rest), ir.Constant(_I64, LANES))
        for vectors, times, first in ((4, quarters, ir.Constant(_I64, 0)), (1, ones, rest)):
            some, after = builder.append_basic_block("some"), builder.append_basic_block("none")
            builder.cbranch(builder.icmp_signed(">", times, ir.Constant(_I64, 0)), some, after)
            builder.position_at_end(some)
            code.loop(times, [], functools.partial(columns, number, vectors, first))
            builder.branch(after)
            builder.position_at_end(after)

    def columns(
        number: int, vectors: int, first: ir.Value, time: ir.Value, _: Sequence[ir.Value]
    ) -> list[ir.Value]:
        column = builder.add(first, builder.mul(time, ir.Constant(_I64, LANES * vectors)))
        begin = builder.add(values, builder.mul(column, ir.Constant(_I64, 2)))
        total_begin = builder.add(sums, builder.mul(column, ir.Constant(_I64, 4)))
        row_bytes, total_bytes = (builder.mul(size, ir.Constant(_I64, width)) for width in (2, 4))
        places = [
            (builder.add(total_begin, builder.mul(total_bytes, ir.Constant(_I64, query))), 64 * vector)
            for query in range(number)
            for vector in range(vectors)
        ]

        def body(index: ir.Value, totals: Sequence[ir.Value]) -> list[ir.Value]:
            row = builder.add(begin, builder.mul(index, row_bytes))
            parts = [builder.fpext(code.load(row, 32 * n, _HALVES, 32), _FLOATS) for n in range(vectors)]
            place = builder.add(weights, builder.mul(index, ir.Constant(_I64, 4)))
            results = []
            for query in range(number):
                repeated = code.all(code.load(place, builder.mul(stride, ir.Constant(_I64, query)), _F32), _FLOATS)
                results.extend(
                    code.multiply_add(repeated, part, totals[vectors * query + n]) for n, part in enumerate(parts)
                )
            return results

        start = [code.load(address, offset, _FLOATS) for address, offset in places]
        for (address, offset), total in zip(places, code.loop(count, start, body), strict=True):
            code.store(total, address, offset)
        return []

    code.switch(queries, MOST_QUERIES, write)


def _floats_of(code: _Code, sums: ir.Value, corrections: ir.Value, scales: ir.Value, step: ir.Value) -> ir.Value:
    whole = code.builder.sub(code.load(sums, 0, _INTS), code.load(corrections, 0, _INTS))
    scale = code.builder.fmul(code.load(scales, 0, _FLOATS), code.all(step, _FLOATS))
    return code.builder.fmul(code.builder.sitofp(whole, _FLOATS), scale)


@_operation(types.void, _int, _int, _int, _float, _int)
def set_product16(
    code: _Code, sums: ir.Value, corrections: ir.Value, scales: ir.Value, step: ir.Value, out: ir.Value
) -> None:
    """16 integer products, without what they have too much, as floats."""
    code.store(_floats_of(code, sums, corrections, scales, step), out, 0)


@_operation(types.void, _int, _int, _int, _float, _int)
def add_product16(
    code: _Code, sums: ir.Value, corrections: ir.Value, scales: ir.Value, step: ir.Value, out: ir.Value
) -> None:
    """Add 16 integer products, without what they have too much, to floats."""
    product = _floats_of(code, sums, corrections, scales, step)
    code.store(code.builder.fadd(code.load(out, 0, _FLOATS), product), out, 0)


@_operation(types.void, _int, _int)
def softmax(code: _Code, address: ir.Value, vectors: ir.Value) -> None:
    """Replace floats, 16 * vectors of them, by their softmax."""
    builder = code.builder

    def find(index: ir.Value, values: Sequence[ir.Value]) -> list[ir.Value]:
        return [code.larger(values[0], code.vector(address, index))]

    (largest,) = code.loop(vectors, [code.floats(-math.inf)], find)
    shift = code.all(code.fold(largest, code.larger), _FLOATS)

    def raise_e(index: ir.Value, values: Sequence[ir.Value]) -> list[ir.Value]:
        power = code.exp(builder.fsub(code.vector(address, index), shift))
        code.set_vector(power, address, index)
        return [builder.fadd(values[0], power)]

    (total,) = code.loop(vectors, [code.floats(0.0)], raise_e)
    factor = builder.fdiv(ir.Constant(_F32, 1.0), code.fold(total, builder.fadd))
    factors = code.all(factor, _FLOATS)

    def divide(index: ir.Value, values: Sequence[ir.Value]) -> list[ir.Value]:
        code.set_vector(builder.fmul(code.vector(address, index), factors), address, index)
        return []

    code.loop(vectors, [], divide)


@_operation(_float, _int, _int)
def largest(code: _Code, address: ir.Value, vectors: ir.Value) -> ir.Value:
    """The largest magnitude of floats, 16 * vectors of them."""

    def find(index: ir.Value, values: Sequence[ir.Value]) -> list[ir.Value]:
        magnitude = code.call("llvm.fabs.v16f32", _FLOATS, [code.vector(address, index)])
        return [code.larger(values[0], magnitude)]

    return code.fold(code.loop(vectors, [code.floats(0.0)], find)[0], code.larger)


@_operation(_float, _int, _int)
def square_sum(code: _Code, address: ir.Value, vectors: ir.Value) -> ir.Value:
    """The sum of the squares of floats, 16 * vectors of them."""

    def add(index: ir.Value, values: Sequence[ir.Value]) -> list[ir.Value]:
        value = code.vector(address, index)
        return [code.multiply_add(value, value, values[0])]

    return code.fold(code.loop(vectors, [code.floats(0.0)], add)[0], code.builder.fadd)


@_operation(types.void, _int, _int, _float, _int, _int)
def multiply(
    code: _Code, values: ir.Value, factors: ir.Value, factor: ir.Value, out: ir.Value, vectors: ir.Value
) -> None:
    """Floats times others and times one for all, 16 * vectors of them."""
    repeated = code.all(factor, _FLOATS)

    def scale(index: ir.Value, _: Sequence[ir.Value]) -> list[ir.Value]:
        scaled = code.builder.fmul(code.vector(values, index), repeated)
        code.set_vector(code.builder.fmul(scaled, code.vector(factors, index)), out, index)
        return []

    code.loop(vectors, [], scale)


@_operation(types.void, _int, _float, _int, _int)
def quantise(code: _Code, values: ir.Value, inverse_step: ir.Value, out: ir.Value, vectors: ir.Value) -> None:
    """Floats, 16 * vectors of them, as unsigned bytes, 128 standing for 0; what reaches too far is cut."""
    builder = code.builder
    inverse = code.all(inverse_step, _FLOATS)

    def round_off(index: ir.Value, _: Sequence[ir.Value]) -> list[ir.Value]:
        scaled = builder.fmul(code.vector(values, index), inverse)
        rounded = code.clamp(code.call("llvm.rint.v16f32", _FLOATS, [scaled]), -128.0, 127.0)
        shifted = builder.add(builder.fptosi(rounded, _INTS), ir.Constant(_INTS, [128] * LANES))
        code.store(builder.trunc(shifted, ir.VectorType(_I8, LANES)), out, builder.mul(index, ir.Constant(_I64, LANES)))
        return []

    code.loop(vectors, [], round_off)


@_operation(types.void, _int, _int, _int)
def swiglu16(code: _Code, gates: ir.Value, values: ir.Value, out: ir.Value) -> None:
    """16 floats x * sigmoid(x) * y."""
    builder = code.builder
    gate = code.load(gates, 0, _FLOATS)
    sigmoid = builder.fdiv(code.floats(1.0), builder.fadd(code.floats(1.0), code.exp(builder.fneg(gate))))
    code.store(builder.fmul(builder.fmul(gate, sigmoid), code.load(values, 0, _FLOATS)), out, 0)


@_operation(types.void, _int, _float)
def set_half(code: _Code, address: ir.Value, value: ir.Value) -> None:
    """Store a float as a half, kept finite."""
    low, high = (ir.Constant(_F32, sign * 65504.0) for sign in (-1, 1))
    bounded = code.call("llvm.maxnum.f32", _F32, [value, low])
    bounded = code.call("llvm.minnum.f32", _F32, [bounded, high])
    code.builder.store(code.builder.fptrunc(bounded, _F16), code.at(address, 0, _F16)).align = 2


@_operation(types.void, _int, _int)
def set_halves16(code: _Code, values: ir.Value, out: ir.Value) -> None:
    """Store 16 floats as halves, kept finite."""
    bounded = code.clamp(code.load(values, 0, _FLOATS), -65504.0, 65504.0)
    code.store(code.builder.fptrunc(bounded, _HALVES), out, 0)


@_operation(_int, _int, _int)
def fetch_add(code: _Code, address: ir.Value, amount: ir.Value) -> ir.Value:
    """Add to an int64 that threads share; returns what it was."""
    return code.builder.atomic_rmw("add", code.at(address, 0, _I64), amount, "acq_rel")


@_operation(_int, _int)
def shared(code: _Code, address: ir.Value) -> ir.Value:
    """An int64 that threads share."""
    return code.builder.load_atomic(code.at(address, 0, _I64), "acquire", 8)


@_operation(types.void, _int, _int)
def set_shared(code: _Code, address: ir.Value, value: ir.Value) -> None:
    """Set an int64 that threads share."""
    code.builder.store_atomic(value, code.at(address, 0, _I64), "release", 8)


@_operation(_int, _int)
def int_at(code: _Code, address: ir.Value) -> ir.Value:
    """An int64."""
    return code.load(address, 0, _I64, 8)


@_operation(types.void, _int, _int)
def set_int(code: _Code, address: ir.Value, value: ir.Value) -> None:
    """Set an int64."""
    code.builder.store(value, code.at(address, 0, _I64)).align = 8


@_operation(types.voidptr, _int)
def _pointer(code: _Code, address: ir.Value) -> ir.Value:
    return code.builder.inttoptr(address, _I8.as_pointer())


@njit(inline="always", cache=True)
def floats(address: int, count: int) -> Any:
    """The float32 array at an address."""
    return carray(_pointer(address), (count,), np.float32)
