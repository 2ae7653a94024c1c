"""Decoders and encoders as graphs of our own on ONNX Runtime's CPU provider."""

from arriero.runners.onnx.encoder_runner import load_encoder
from arriero.runners.onnx.load import load_runner

__all__ = ["load_encoder", "load_runner"]
