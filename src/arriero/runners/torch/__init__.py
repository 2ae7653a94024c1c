"""Runs whatever transformers can load, on PyTorch; needs the extra `torch`."""

from arriero.runners.torch.load import load_runner

__all__ = ["load_runner"]
