"""The same model in coordinates that quantise better.

A few hidden channels of a language model are tens of times larger than the rest, and an int8 scale that must
reach them leaves the others few steps. Two changes of coordinates spread them out. Neither changes what the
model computes, and neither costs anything at run time:

- The residual stream is rotated. With each norm's gamma folded into the layers that read it, RMSNorm commutes
  with an orthogonal matrix, which can then be folded into every layer that reads or writes the stream
  (Ashkboos et al. 2024, QuaRot). Rotated, an outlier is spread over all channels.
- Between up_proj and down_proj each channel is divided and multiplied by a factor (Xiao et al. 2023,
  SmoothQuant). It depends on how far the channel reaches, which is observed while the model reads a short text.
  Where the stream cannot be rotated, what layers read from norms is evened out in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from arriero.models.adapters.lora import Adapter, Delta
from arriero.models.architecture import PRE_NORMS, Checkpoint, DecoderConfig
from arriero.runners.onnx.builder import MODEL_FILE
from arriero.runners.onnx.decoder import EMBEDDINGS_FILE, STATES_WEIGHT
from arriero.runners.onnx.formats import ZERO_POINT

_READS_ATTENTION_NORM = ("q_proj", "k_proj", "v_proj")
_READS_MLP_NORM = ("mlp.gate_proj", "mlp.up_proj")
_WRITES = ("o_proj", "down_proj")


class SmoothedCheckpoint:
    """A `Checkpoint` whose weights are another's in smoother coordinates.

    The stream is rotated where every layer reads it through a norm and writes to it without one. A norm behind a
    branch (Gemma 2, OLMo 2) multiplies each channel of what it adds, which no rotation passes through: there the
    channels that layers read are evened out, as far as they come from a norm, which takes in the factors. Rotated,
    embeddings and head are untied.
    """

    def __init__(
        self, original: Checkpoint, reach: Sequence[NDArray[np.float32]] | None = None, *, rotated: bool = True
    ) -> None:
        """`reach[N]`, float32 [intermediate + 2 * hidden], is how far the channels of layer N reach, if observed.

        Not `rotated`, every stream keeps its coordinates, as those do that cannot be rotated.
        """
        self._original = original
        self._reach = reach
        self._known_factors: dict[str, NDArray[np.float32]] = {}
        self._rotates = rotated and rotates(original.config)
        self.identity = original.identity

    @cached_property
    def config(self) -> DecoderConfig:
        """The original's; rotated, with a head of its own: it takes in the last norm's gamma, the embeddings do not."""
        original = self._original.config
        return dataclasses.replace(original, tie_embeddings=False) if self._rotates else original

    def __contains__(self, name: str) -> bool:
        return name in self._original or (self._rotates and name in ("lm_head.weight", STATES_WEIGHT))

    def tensor(self, name: str) -> NDArray[np.float32]:
        """See `Checkpoint.tensor`."""
        if name == "lm_head.weight" and self._rotates:
            tied = self._original.config.tie_embeddings
            head = self._original.tensor("model.embed_tokens.weight" if tied else name)
            return rotate(head * self._original.tensor("model.norm.weight"))
        if name == STATES_WEIGHT:
            # The last norm gives (states / gamma) R here, R being the rotation.
            return rotate(np.diag(self._original.tensor("model.norm.weight")))
        value = self._original.tensor(name)
        module, kind = name.rsplit(".", 1)
        if not module.endswith("_proj"):
            return self._stream_tensor(module, value)
        if kind == "bias":
            return self._out(module, value[:, None])[:, 0]
        return self._into(module, self._out(module, value))

    def original_reach(self, observed: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """How far channels reach in the original, from what was observed in these coordinates without a reach."""
        config = self._original.config
        others = np.ones(2 * config.hidden_size, np.float32)
        return [
            reach * np.concatenate([self._factors(f"model.layers.{layer}"), others])
            for layer, reach in enumerate(observed)
        ]

    def _stream_tensor(self, module: str, value: NDArray[np.float32]) -> NDArray[np.float32]:
        if module.endswith(("q_norm", "k_norm")):
            return value
        if not self._rotates:
            layer, _, norm = module.rpartition(".")
            norms = self._original.config.norms
            return (
                value / self._read_factors(layer, norm) if norm in (norms.before_attention, norms.before_mlp) else value
            )
        return rotate(value) if module == "model.embed_tokens" else np.ones_like(value)  # a norm

    def _into(self, name: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows [rows, in] that a linear layer multiplies its input by, for the input in these coordinates."""
        layer, _, module = name.rsplit(".", 2)  # model.layers.0 . mlp . up_proj
        if module == "down_proj":
            return rows * self._factors(layer)
        if module in _WRITES:
            return rows
        if self._rotates:
            return rotate(rows * self._gamma(layer, module))
        return rows * self._read_factors(layer, self._norm_before(module))

    def _out(self, name: str, columns: NDArray[np.float32]) -> NDArray[np.float32]:
        """Columns [out, columns] that a linear layer's result is made of, in these coordinates."""
        layer, _, module = name.rsplit(".", 2)
        if module == "up_proj":
            return columns / self._factors(layer)[:, None]
        if self._rotates and module in _WRITES:
            return np.ascontiguousarray(rotate(columns.T).T)
        return columns

    def _gamma(self, layer: str, module: str) -> NDArray[np.float32]:
        """What each channel of the stream is multiplied by before a module of this layer reads it."""
        norm = self._norm_before(module)
        if norm is None:
            return np.ones(self._original.config.hidden_size, np.float32)
        return self._original.tensor(f"{layer}.{norm}.weight")

    def _norm_before(self, module: str) -> str | None:
        norms = self._original.config.norms
        return norms.before_attention if module in _READS_ATTENTION_NORM else norms.before_mlp

    def _read_factors(self, layer: str, norm: str | None) -> NDArray[np.float32]:
        """What each channel of the rows behind a layer's norm is divided by, float32 [hidden], as in `_factors`."""
        config = self._original.config
        if norm is None or self._reach is None:
            return np.ones(config.hidden_size, np.float32)
        key = f"{layer}.{norm}"
        if key not in self._known_factors:
            attends = norm == config.norms.before_attention
            modules = [f"self_attn.{part}" for part in _READS_ATTENTION_NORM] if attends else _READS_MLP_NORM
            weights = (self._original.tensor(f"{layer}.{module}.weight") for module in modules)
            largest = np.max([np.abs(weight).max(axis=0) for weight in weights], axis=0)
            first = config.intermediate_size + (0 if attends else config.hidden_size)
            reach = self._reach[int(layer.rsplit(".", 1)[1])][first : first + config.hidden_size]
            self._known_factors[key] = _evening(reach, largest)
        return self._known_factors[key]

    def _factors(self, layer: str) -> NDArray[np.float32]:
        """What each inner channel of the MLP is divided by, float32 [intermediate].

        The square root of how far the channel reaches over how large its output weights are, which evens out
        both. Unobserved, a channel is taken to reach as far as the rows of gate and up that make it are long.
        """
        if layer in self._known_factors:
            return self._known_factors[layer]
        if self._reach is not None:
            reach = self._reach[int(layer.rsplit(".", 1)[1])][: self._original.config.intermediate_size]
        else:
            gamma = self._gamma(layer, "gate_proj")
            gate, up = (self._original.tensor(f"{layer}.mlp.{part}_proj.weight") for part in ("gate", "up"))
            reach = np.linalg.norm(gate * gamma, axis=1) * np.linalg.norm(up * gamma, axis=1)
        largest = np.abs(self._original.tensor(f"{layer}.mlp.down_proj.weight")).max(axis=0)
        self._known_factors[layer] = _evening(reach, largest)
        return self._known_factors[layer]


class SmoothedAdapter(SmoothedCheckpoint):
    """An adapter in the coordinates that its base has when it is smoothed with the same `reach`."""

    def __init__(self, original: Adapter, reach: Sequence[NDArray[np.float32]] | None, *, rotated: bool = True) -> None:
        super().__init__(original, reach, rotated=rotated)
        self._adapter = original

    def delta(self, module: str) -> Delta | None:
        """See `Adapter.delta`."""
        delta = self._adapter.delta(module)
        return None if delta is None else Delta(self._into(module, delta.into), self._out(module, delta.out))


def rotates(config: DecoderConfig) -> bool:
    """Whether a model's stream can be rotated."""
    return config.norms == PRE_NORMS


def _evening(reach: NDArray[np.float32], largest: NDArray[np.float32]) -> NDArray[np.float32]:
    """Factors for channels that reach so far, of which the largest weights are these."""
    factors: NDArray[np.float32] = np.sqrt(
        (reach + 1e-3 * reach.mean() + 1e-8) / (largest + 1e-3 * largest.mean() + 1e-8)
    )
    return factors


def observe(directory: Path, config: DecoderConfig, tokens: Sequence[int]) -> list[NDArray[np.float32]]:
    """How far the channels of every layer reach while an observed graph reads `tokens`; see `build_decoder`."""
    session = ort.InferenceSession(str(directory / MODEL_FILE), providers=["CPUExecutionProvider"])
    count = len(tokens)
    embeddings = np.load(directory / EMBEDDINGS_FILE, mmap_mode="r")
    empty = np.zeros((1, config.num_kv_heads, count, config.head_dim), np.float32)
    feeds: dict[str, NDArray[Any]] = {
        name.name: empty for name in session.get_inputs() if name.name.startswith("past.")
    }
    feeds |= {
        "hidden": embeddings[list(tokens)][None],
        "wanted": np.array([count - 1]),
        "logits.rows": np.array([0]),
        "shown": np.array([], np.int64),
        "seqlens_k": np.array([count - 1], np.int32),
        "total_length": np.array(count, np.int32),
        "packed_shape": np.array([1, count, -1]),
        "zero_points": np.full(count, ZERO_POINT, np.uint8),
    }
    reach: list[NDArray[np.float32]] = session.run([f"reach.{n}" for n in range(config.num_layers)], feeds)
    return reach


def rotate(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows [..., size] times a fixed orthogonal matrix [size, size] whose entries are all of similar magnitude.

    The matrix is the Kronecker product of a Hadamard matrix (size's power of two) and a discrete cosine
    transform (its odd part), after random signs, which keep constant rows from gathering in one channel.
    """
    size = rows.shape[-1]
    power = size & -size
    signs = np.where(np.random.PCG64(size).random_raw(size) >> 63, 1, -1).astype(np.float32)
    # A Hadamard matrix is the product of two smaller ones, which are fast matrix products of 64 columns at most or so.
    low = 1 << power.bit_length() // 2
    values = (rows * signs).reshape(-1, low) @ _hadamard(low)
    values = _hadamard(power // low) @ values.reshape(-1, power // low, low)
    values = values.reshape(-1, size // power, power)
    values = np.einsum("ij,njk->nik", _cosines(size // power), values / np.float32(np.sqrt(power)))
    return np.ascontiguousarray(values.reshape(rows.shape), np.float32)


def _hadamard(size: int) -> NDArray[np.float32]:
    """Sylvester's Hadamard matrix; the size is a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _cosines(size: int) -> NDArray[np.float32]:
    """The orthonormal DCT-II matrix."""
    indices = np.arange(size)
    matrix = np.sqrt(2 / size) * np.cos(np.pi * (2 * indices[None] + 1) * indices[:, None] / (2 * size))
    matrix[0] /= np.sqrt(2)
    cosines: NDArray[np.float32] = matrix.astype(np.float32)
    return cosines
