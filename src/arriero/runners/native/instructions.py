"""LLVM instructions for vectors of 16, and how operations that numba's kernels can name are made of them.

Addresses are int64. A vector of 16 is one AVX-512 register, or two of AVX2's, which LLVM splits by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from arriero.runners.native.plan import LANES

I8, I32, I64 = (ir.IntType(bits) for bits in (8, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
BYTES = ir.VectorType(I8, 64)
INTS = ir.VectorType(I32, LANES)
FLOATS = ir.VectorType(F32, LANES)
HALVES = ir.VectorType(F16, LANES)

_FEATURES = llvmlite.binding.get_host_cpu_features()
_VNNI = bool(_FEATURES.get("avx512vnni"))
WIDE = bool(_FEATURES.get("avx512f"))
"""Whether the processor has 32 registers for whole vectors."""


class Code:
    """Writes vector instructions at the builder's place."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def at(self, address: ir.Value, offset: ir.Value | int, kind: ir.Type) -> ir.Value:
        """A pointer to `offset` bytes behind an address."""
        offset = ir.Constant(I64, offset) if isinstance(offset, int) else offset
        return self.builder.inttoptr(self.builder.add(address, offset), kind.as_pointer())

    def load(self, address: ir.Value, offset: ir.Value | int, kind: ir.Type, align: int = 4) -> ir.Value:
        """What lies `offset` bytes behind an address."""
        value = self.builder.load(self.at(address, offset, kind))
        value.align = align
        return value

    def store(self, value: ir.Value, address: ir.Value, offset: ir.Value | int) -> None:
        """Put a value `offset` bytes behind an address."""
        self.builder.store(value, self.at(address, offset, value.type)).align = 4

    def all(self, value: ir.Value, kind: ir.VectorType) -> ir.Value:
        """A vector that has a scalar in every lane."""
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(I32, 0))
        lanes = ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count)
        return self.builder.shuffle_vector(first, undefined, lanes)

    def floats(self, value: float) -> ir.Constant:
        """A vector of one number."""
        return ir.Constant(FLOATS, [value] * LANES)

    def call(self, name: str, result: ir.Type, arguments: Sequence[ir.Value]) -> ir.Value:
        """Call one of LLVM's own functions."""
        module = self.builder.module
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(result, [each.type for each in arguments]), name)
        return self.builder.call(function, list(arguments))

    def multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """a * b + c, rounded once."""
        return self.call("llvm.fma.v16f32", FLOATS, [a, b, c])

    def clamp(self, value: ir.Value, low: float, high: float) -> ir.Value:
        """Floats, but none beyond these bounds."""
        return self.call("llvm.minnum.v16f32", FLOATS, [self.larger(value, self.floats(low)), self.floats(high)])

    def fold(self, value: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
        """All lanes as one scalar, halves first."""
        lanes = LANES
        while lanes > 1:
            lanes //= 2
            order = ir.Constant(ir.VectorType(I32, LANES), [(lane + lanes) % LANES for lane in range(LANES)])
            value = combine(value, self.builder.shuffle_vector(value, value, order))
        return self.builder.extract_element(value, ir.Constant(I32, 0))

    def larger(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The larger one of each lane."""
        return self.call("llvm.maxnum.v16f32", FLOATS, [a, b])

    def vector(self, address: ir.Value, index: ir.Value) -> ir.Value:
        """The float vector of that number behind an address."""
        return self.load(address, self.builder.mul(index, ir.Constant(I64, 4 * LANES)), FLOATS)

    def set_vector(self, value: ir.Value, address: ir.Value, index: ir.Value) -> None:
        """Set the float vector of that number behind an address."""
        self.store(value, address, self.builder.mul(index, ir.Constant(I64, 4 * LANES)))

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
        index = builder.phi(I64)
        index.add_incoming(ir.Constant(I64, 0), before)
        values = [builder.phi(each.type) for each in start]
        for value, each in zip(values, start, strict=True):
            value.add_incoming(each, before)
        results = body(index, values)
        following = builder.add(index, ir.Constant(I64, 1))
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
            branch.add_case(ir.Constant(I64, number), block)
            builder.position_at_end(block)
            write(number)
            builder.branch(after)
        builder.position_at_end(after)

    def dot(self, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
        """Sums of int32 plus, in each lane, the products of 4 unsigned and 4 signed bytes; exact."""
        if _VNNI:
            return self.call("llvm.x86.avx512.vpdpbusd.512", INTS, [total, unsigned, signed])
        wide = ir.VectorType(I32, 64)
        products = self.builder.mul(self.builder.zext(unsigned, wide), self.builder.sext(signed, wide))
        for part in range(4):
            lanes = ir.Constant(ir.VectorType(I32, LANES), [4 * lane + part for lane in range(LANES)])
            undefined = ir.Constant(wide, ir.Undefined)
            total = self.builder.add(total, self.builder.shuffle_vector(products, undefined, lanes))
        return total

    def exp(self, value: ir.Value) -> ir.Value:
        """e to the power of each lane: 2 ** n * p(r), where r is what is left of value / ln 2 beside the integer n.

        p is the polynomial of Cephes' expf: a relative error of 2e-7. Exactly 1 at 0; 0 at and below -88.
        """
        builder = self.builder
        bounded = self.clamp(value, -88.0, 88.0)
        n = self.call("llvm.rint.v16f32", FLOATS, [builder.fmul(bounded, self.floats(1.4426950408889634))])
        rest = self.multiply_add(n, self.floats(-0.693359375), bounded)
        rest = self.multiply_add(n, self.floats(2.12194440e-4), rest)
        power = self.floats(1.9875691500e-4)
        for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            power = self.multiply_add(power, rest, self.floats(coefficient))
        power = self.multiply_add(builder.fmul(power, rest), rest, builder.fadd(rest, self.floats(1.0)))
        exponent = builder.add(builder.fptosi(n, INTS), ir.Constant(INTS, [127] * LANES))
        scale = builder.bitcast(builder.shl(exponent, ir.Constant(INTS, [23] * LANES)), FLOATS)
        return builder.select(
            builder.fcmp_ordered(">", value, self.floats(-88.0)), builder.fmul(power, scale), self.floats(0.0)
        )


def operation(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make an operation for kernels of `write(code, *values)`, which writes it and returns the result's value."""

    def make(write: Callable[..., Any]) -> Any:
        signature = result(*arguments)

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[ir.Value]) -> Any:
            value = write(Code(builder), *values)
            return context.get_dummy_value() if value is None else value

        def typed(typing: Any, *values: Any) -> Any:
            return signature, generate

        names = ["typing", *(f"a{index}" for index in range(len(arguments)))]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        typed.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
        typed.__doc__ = write.__doc__
        return intrinsic(typed)

    return make


INT, FLOAT = types.int64, types.float32
