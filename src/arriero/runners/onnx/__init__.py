"""Decoders and encoders as graphs of our own on ONNX Runtime's CPU provider.

ONNX takes long to import, and parts of this room can do without it: so it is imported when something is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arriero.runners.onnx.encoder_runner import load_encoder
    from arriero.runners.onnx.load import load_runner

__all__ = ["load_encoder", "load_runner"]

_HOMES = {"load_encoder": "encoder_runner", "load_runner": "load"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"there is no {name}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
