"""Decoders as graphs of our own on ONNX Runtime's CPU provider."""

from arriero.runners.onnx.load import load_runner

__all__ = ["load_runner"]
