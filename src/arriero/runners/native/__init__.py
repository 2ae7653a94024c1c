"""Decoders with weights in int8 or int4 on kernels of our own, which numba compiles for the machine at hand."""

from arriero.runners.native.load import is_fast, load_runner, reason_against

__all__ = ["is_fast", "load_runner", "reason_against"]
