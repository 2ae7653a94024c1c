"""From an encoder's last hidden states to the vectors that callers get.

Every input is computed by itself, so that a vector does not depend on what else is in its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from arriero.models.encoders.encoder import EncoderCheckpoint
from arriero.models.encoders.encoder_config import Activation
from arriero.models.encoders.pooling import Dense, Pooling, PoolingMode

Vector = NDArray[np.float32]
Finish = Callable[[Vector], Vector]
"""From the states of one input, float32 [tokens, hidden], to its vector."""

_SLOPE = np.float32(math.sqrt(2 / math.pi))
_erf = np.vectorize(math.erf, otypes=[np.float32])
_ACTIVATIONS: Mapping[Activation, Finish] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": lambda x: np.reciprocal(1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + _erf(x * np.float32(math.sqrt(0.5)))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(_SLOPE * (x + np.float32(0.044715) * x**3))) / 2,
}
_MODES: Mapping[PoolingMode, Finish] = {
    "cls": lambda states: states[0],
    "max": lambda states: states.max(0),
    "mean": lambda states: states.mean(0),
    "mean_sqrt_len_tokens": lambda states: states.sum(0) / np.float32(math.sqrt(len(states))),
    "weightedmean": lambda states: _weighted_mean(states),
    "lasttoken": lambda states: states[-1],
}


def finish(checkpoint: EncoderCheckpoint) -> Finish:
    """What makes an input's vector of its states: the pooling, or the logits of the classification head.

    Raises `ModelLoadError` for a damaged tensor of the head.
    """
    return _scoring(checkpoint) if checkpoint.config.head else _pooling(checkpoint.pooling)


def _pooling(pooling: Pooling) -> Finish:
    def pool(states: Vector) -> Vector:
        vector = np.concatenate([_MODES[mode](states) for mode in pooling.modes])
        for step in pooling.steps:
            vector = _normalized(vector) if step == "normalize" else _dense(step, vector)
        return vector

    return pool


def _scoring(checkpoint: EncoderCheckpoint) -> Finish:
    head, epsilon = checkpoint.config.head, checkpoint.config.norm_epsilon
    assert head is not None
    names = ("head.dense.weight", "head.dense.bias", "head.norm.weight", "head.norm.bias", "head.out.weight")
    tensors = {name: checkpoint.tensor(name) for name in (*names, "head.out.bias") if name in checkpoint}
    dense = Dense(tensors["head.dense.weight"], tensors.get("head.dense.bias"), head.activation)
    out = Dense(tensors["head.out.weight"], tensors["head.out.bias"], "identity")

    def score(states: Vector) -> Vector:
        vector = _dense(dense, _MODES[head.pooling](states))
        if head.norm:
            centred = vector - vector.mean()
            vector = centred / np.sqrt(np.square(centred).mean() + np.float32(epsilon)) * tensors["head.norm.weight"]
            vector = vector + tensors.get("head.norm.bias", np.float32(0))
        return _dense(out, vector)

    return score


def _weighted_mean(states: Vector) -> Vector:
    """Later tokens weigh more: the first 1, the second 2, and so on."""
    weights = np.arange(1, len(states) + 1, dtype=np.float32)
    mean: Vector = weights @ states / weights.sum()
    return mean


def _dense(layer: Dense, vector: Vector) -> Vector:
    product = layer.weight @ vector
    result = _ACTIVATIONS[layer.activation](product if layer.bias is None else product + layer.bias)
    return result + vector if layer.residual else result


def _normalized(vector: Vector) -> Vector:
    """Length 1; as in torch, a vector of almost no length stays as it is."""
    normalized: Vector = vector / np.maximum(np.linalg.norm(vector), np.float32(1e-12))
    return normalized
