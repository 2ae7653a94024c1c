"""A decoder's weights as the kernels read them: one file, and where in it everything lies.

Linear layers are int8 with one scale an output, in units of 32 outputs (`vectors`). Gate and up are one layer, whose
units have 16 outputs of each. Sums are 128 times each output's sum of weights, which products with unsigned
rows have too much.
"""

from __future__ import annotations

import json
import mmap
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from arriero.models.architecture import Checkpoint
from arriero.runners.native.plan import GROUP, LANES, Form, padded
from arriero.runners.native.quantisation import pack_groups, pack_rows, quantise_bytes, quantise_nibbles, whole_units

WEIGHTS_FILE = "weights.bin"
INDEX_FILE = "weights.json"
EMBEDDINGS_FILE = "embeddings.npy"
STATES = "states"
_ALIGNMENT = 64
_HUGE_PAGE = 2**21
_PIECES = 64
"""Weights find their place in so many steps, or up to twice as many: in fewer they would hold up the first answer."""
_POPULATE = getattr(mmap, "MAP_POPULATE", 0)


def head_form(form: Form) -> Form:
    """How the vocabulary projection is written: where the layers have 4 bits, it has 8."""
    return Form.BYTES if form == Form.NIBBLES else form


def write_weights(
    checkpoint: Checkpoint,
    directory: Path,
    form: Form,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a checkpoint's weights. Raises `ModelLoadError` for a missing or misshapen tensor."""
    config = checkpoint.config
    embeddings = checkpoint.tensor("model.embed_tokens.weight")
    np.save(directory / EMBEDDINGS_FILE, embeddings * np.float32(config.embedding_scale))
    with (directory / WEIGHTS_FILE).open("wb") as file:
        writer = _Writer(file, form)
        for layer in range(config.num_layers):
            if progress is not None:
                progress(layer, config.num_layers)
            _write_layer(writer, checkpoint, layer)
        writer.padded("final_norm", checkpoint.tensor("model.norm.weight"))
        head = embeddings if config.tie_embeddings else checkpoint.tensor("lm_head.weight")
        writer.linear("head", head * np.float32(config.logits_scale), head_form(form))
        if "model.states.weight" in checkpoint:
            writer.array(STATES, checkpoint.tensor("model.states.weight"))
    (directory / INDEX_FILE).write_text(json.dumps(writer.index))
    if progress is not None:
        progress(config.num_layers, config.num_layers)


def _write_layer(writer: _Writer, checkpoint: Checkpoint, layer: int) -> None:
    config, prefix = checkpoint.config, f"model.layers.{layer}"
    parts = [f"{prefix}.self_attn.{part}_proj" for part in "qkv"]
    norms = config.norms
    writer.padded(f"{layer}.norm", checkpoint.tensor(f"{prefix}.{norms.before_attention}.weight"))
    writer.linear(f"{layer}.qkv", np.concatenate([checkpoint.tensor(f"{part}.weight") for part in parts]))
    if config.attention_bias:
        writer.padded(f"{layer}.qkv.bias", np.concatenate([checkpoint.tensor(f"{part}.bias") for part in parts]))
    if config.qk_norm == "head":
        for part in ("q", "k"):
            writer.padded(f"{layer}.{part}_norm", checkpoint.tensor(f"{prefix}.self_attn.{part}_norm.weight"))
    branch = np.float32(config.residual_scale)
    writer.linear(f"{layer}.output", checkpoint.tensor(f"{prefix}.self_attn.o_proj.weight") * branch)
    if config.output_bias:
        writer.padded(f"{layer}.output.bias", checkpoint.tensor(f"{prefix}.self_attn.o_proj.bias") * branch)
    writer.padded(f"{layer}.mlp_norm", checkpoint.tensor(f"{prefix}.{norms.before_mlp}.weight"))
    gate, up = (checkpoint.tensor(f"{prefix}.mlp.{part}_proj.weight") for part in ("gate", "up"))
    writer.linear(f"{layer}.gate_up", _interleave(gate, up))
    writer.linear(f"{layer}.down", checkpoint.tensor(f"{prefix}.mlp.down_proj.weight") * branch)


def _interleave(gate: NDArray[np.float32], up: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sixteen outputs of one, sixteen of the other, and so on; both padded with zeros to whole units."""
    pairs = [whole_units(each).reshape(-1, 1, LANES, each.shape[1]) for each in (gate, up)]
    return np.concatenate(pairs, axis=1).reshape(-1, gate.shape[1])


class _Writer:
    """Arrays behind each other in a file, each aligned to a cache line."""

    def __init__(self, file: BinaryIO, form: Form) -> None:
        self._file = file
        self._form = form
        self.index: dict[str, tuple[int, int]] = {}
        """Offset and bytes of each array."""

    def array(self, name: str, array: NDArray[Any]) -> None:
        self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
        self.index[name] = (self._file.tell(), array.nbytes)
        array.tofile(self._file)

    def padded(self, name: str, vector: NDArray[np.float32]) -> None:
        """A vector of outputs, padded to whole units."""
        self.array(name, whole_units(vector).astype(np.float32))

    def linear(self, name: str, weight: NDArray[np.float32], form: Form | None = None) -> None:
        """A linear layer [out, in], written as all are unless `form` is another."""
        form = self._form if form is None else form
        if form != Form.ROWS:
            quantise = quantise_nibbles if form == Form.NIBBLES else quantise_bytes
            self.array(name, pack_groups(*quantise(np.pad(weight, [(0, 0), (0, -weight.shape[1] % GROUP)]))))
            return
        # ONNX takes long to import, and only conversions need any of it.
        from arriero.runners.onnx.formats import ZERO_POINT, quantise_rows

        integers, scales = quantise_rows(weight)
        self.array(name, pack_rows(integers.astype(np.int8)))
        self.padded(f"{name}.scales", scales)
        sums = ZERO_POINT * integers.sum(axis=1, dtype=np.int32)
        self.array(f"{name}.sums", whole_units(sums))


class Weights:
    """A file of weights in memory, and the address of each array in it.

    Reading weights is what decoding spends its time on, and reads go a third faster through huge pages. To get and fill
    those takes as long as half of a start, so at first the weights are where the system keeps the file, and `settle`
    moves them, a piece in each of the first steps.
    """

    def __init__(self, directory: Path) -> None:
        self._index: dict[str, tuple[int, int]] = json.loads((directory / INDEX_FILE).read_text())
        self._ends = [0, *sorted(offset + size for offset, size in self._index.values())]
        with (directory / WEIGHTS_FILE).open("rb") as file:
            self._file = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED | _POPULATE, prot=mmap.PROT_READ)
        self._bytes = np.frombuffer(self._file, np.uint8)
        size = padded(len(self._bytes), _HUGE_PAGE)
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._home = np.frombuffer(memory, np.uint8)[: len(self._bytes)]
        self._piece = max(size // _HUGE_PAGE // _PIECES, 1) * _HUGE_PAGE
        self._num_moved = 0

    def settle(self, program: NDArray[np.int64]) -> None:
        """Move a piece, and put the new addresses into a program in the place of those that were given before."""
        if self._bytes is self._home:
            return
        piece = slice(self._num_moved, self._num_moved + self._piece)
        self._home[piece] = self._bytes[piece]
        self._num_moved = piece.stop
        end = self._ends[bisect_right(self._ends, self._num_moved) - 1]  # of the last array that is moved as a whole
        here, there = self._bytes.ctypes.data, self._home.ctypes.data
        program[(program >= here) & (program < here + end)] += there - here
        if hasattr(mmap, "MADV_DONTNEED"):  # it takes no memory twice
            self._file.madvise(mmap.MADV_DONTNEED, 0, end - end % mmap.PAGESIZE)
        if self._num_moved >= len(self._bytes):
            self._bytes = self._home
            self._file.close()

    def address(self, name: str) -> int:
        """Where an array lies; 0 for one that the model does not have."""
        if name not in self._index:
            return 0
        return int(self._bytes.ctypes.data) + self._index[name][0]

    def floats(self, name: str) -> NDArray[np.float32] | None:
        """A flat float32 array, if the model has it."""
        if name not in self._index:
            return None
        offset, size = self._index[name]
        return self._bytes[offset : offset + size].view(np.float32)
