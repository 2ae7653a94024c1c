"""The same model with attention heads of a size that onnxruntime's attention takes.

It takes heads of a multiple of 16 elements, of which positions turn a multiple of 16. Heads of another size get zeros:
behind each half of the elements that are turned, because element i is turned together with element i + half, and at
the end. Zeros in queries and keys add nothing to their products, and those in values nothing to what is attended.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from arriero.errors import UnsupportedModel
from arriero.models.architecture import Checkpoint, DecoderConfig

HEAD_MULTIPLE = 16
ROTATION_MULTIPLE = HEAD_MULTIPLE // 2
"""Of the pairs that are turned."""
_PADDED = ("q_proj", "k_proj", "v_proj")


def is_padded(config: DecoderConfig) -> bool:
    """True when heads are of a size that needs zeros; `UnsupportedModel` where zeros would change the result."""
    turned = config.head_dim if config.rotary_dim is None else config.rotary_dim
    if not (config.head_dim % HEAD_MULTIPLE or turned % HEAD_MULTIPLE):
        return False
    if config.qk_norm is not None:
        raise UnsupportedModel(
            f"The attention heads have {config.head_dim} elements and norms of queries and keys; "
            f"onnxruntime's attention takes multiples of {HEAD_MULTIPLE}."
        )
    return True


class PaddedCheckpoint:
    """A `Checkpoint` whose attention is another's with zeros in every head."""

    def __init__(self, original: Checkpoint) -> None:
        """Only for configurations that `is_padded` tells of."""
        self._original = original
        self.identity = original.identity

    @cached_property
    def config(self) -> DecoderConfig:
        """The original's with larger heads that attend as the smaller ones do."""
        original = self._original.config
        scale = original.attention_scale or original.head_dim**-0.5
        turned = original.head_dim if original.rotary_dim is None else original.rotary_dim
        size = int(self._places[-1]) + 1
        return dataclasses.replace(
            original, head_dim=size + -size % HEAD_MULTIPLE, rotary_dim=turned, attention_scale=scale
        )

    def __contains__(self, name: str) -> bool:
        return name in self._original

    def tensor(self, name: str) -> NDArray[np.float32]:
        """See `Checkpoint.tensor`."""
        value = self._original.tensor(name)
        module = name.split(".")[-2]
        if module in _PADDED:
            return self._with_zeros(value)
        return np.ascontiguousarray(self._with_zeros(value.T).T) if name.endswith("o_proj.weight") else value

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Where each element of a head goes, int64 [head_dim]."""
        original = self._original.config
        turned = original.head_dim if original.rotary_dim is None else original.rotary_dim
        half = turned // 2
        padded = half + -half % ROTATION_MULTIPLE
        first, second = np.arange(half), padded + np.arange(half)
        return np.concatenate([first, second, 2 * padded + np.arange(original.head_dim - turned)])

    def _with_zeros(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows [heads * head_dim, ...] with those of the larger heads."""
        heads = rows.reshape(-1, self._original.config.head_dim, *rows.shape[1:])
        padded = np.zeros((len(heads), self.config.head_dim, *rows.shape[1:]), np.float32)
        padded[:, self._places] = heads
        return padded.reshape(-1, *rows.shape[1:])
