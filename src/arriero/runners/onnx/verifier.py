"""A second graph over the same weights, which reads several tokens of one row as if they came one after another.

Attention sums in another order for several tokens than for one, so a prompt's chunk does not say, bit for bit, what
decoding its tokens one by one says. Here each token has an attention of its own in every layer, behind those of the
tokens before it: all read and write the row's keys and values in place. Everything else depends on nothing but the row
of its own token, and so is computed for all tokens at once, for the weights are read only once then.

Inputs and outputs are those of `arriero.runners.onnx.decoder`, but for one `seqlens_k.T` and `total_length.T` a token,
and outputs `present.N.key.T` of all tokens T but the last, bound to the same memory as the others.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from arriero.compute import Row
from arriero.runners.onnx.builder import MODEL_FILE, WEIGHTS_FILE
from arriero.runners.onnx.cache import KeyValueCache
from arriero.runners.onnx.formats import ZERO_POINT
from arriero.runners.onnx.session import open_session


def build_verifier(base: Path, num_tokens: int, directory: Path) -> None:
    """Write the graph for so many tokens into `directory`, from what `build_decoder` wrote into `base`."""
    try:
        os.link(base / WEIGHTS_FILE, directory / WEIGHTS_FILE)
    except OSError:
        shutil.copyfile(base / WEIGHTS_FILE, directory / WEIGHTS_FILE)
    model = onnx.load(base / MODEL_FILE, load_external_data=False)
    graph = model.graph
    presents = {output.name: output for output in graph.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += _one_by_one(node, num_tokens) if node.op_type == "GroupQueryAttention" else [node]
    del graph.node[:]
    graph.node.extend(nodes)
    for node in nodes:
        for name in node.output[1:] if node.op_type == "GroupQueryAttention" else ():
            if name not in presents:
                further = onnx.ValueInfoProto()
                further.CopyFrom(presents[name.rpartition(".")[0]])
                further.name = name
                graph.output.append(further)
    kept = [each for each in graph.input if each.name not in ("seqlens_k", "total_length")]
    del graph.input[:]
    graph.input.extend(kept)
    for token in range(num_tokens):
        graph.input.append(helper.make_tensor_value_info(f"seqlens_k.{token}", TensorProto.INT32, [1]))
        graph.input.append(helper.make_tensor_value_info(f"total_length.{token}", TensorProto.INT32, []))
    (directory / MODEL_FILE).write_bytes(model.SerializeToString())


def _one_by_one(node: onnx.NodeProto, num_tokens: int) -> list[onnx.NodeProto]:
    """The attention of a layer as one of each token, each going on from the keys and values of the one before."""
    *packed, key, value, _, _ = node.input[:7]
    attended, *presents = node.output
    parts = {name: [f"{attended}.{name}.{token}" for token in range(num_tokens)] for name in packed if name}
    nodes = [
        helper.make_node("Split", [name], pieces, axis=1, num_outputs=num_tokens) for name, pieces in parts.items()
    ]
    for token in range(num_tokens):
        last = token == num_tokens - 1
        single = onnx.NodeProto()
        single.CopyFrom(node)
        given = [parts[name][token] if name else "" for name in packed]
        del single.input[:], single.output[:]
        single.input.extend([*given, key, value, f"seqlens_k.{token}", f"total_length.{token}", *node.input[7:]])
        key, value = presents if last else (f"{name}.{token}" for name in presents)
        single.output.extend([f"{attended}.{token}", key, value])
        single.name = ""
        nodes.append(single)
    outputs = [f"{attended}.{token}" for token in range(num_tokens)]
    return [*nodes, helper.make_node("Concat", outputs, [attended], axis=1)]


class Verifier:
    """Runs that graph on the rows of a runner's cache."""

    def __init__(self, directory: Path, cache: KeyValueCache, num_tokens: int, hidden: int, vocab: int, threads: int):
        """Open what `build_verifier` wrote for so many tokens; `hidden` and `vocab` are sizes of the model."""
        self._session = open_session(directory / MODEL_FILE, threads)
        self._cache = cache
        self.num_tokens = num_tokens
        self._lengths = [np.zeros(1, np.int32) for _ in range(num_tokens)]
        self._totals = [np.zeros((), np.int32) for _ in range(num_tokens)]
        self._hidden = np.zeros((1, num_tokens, hidden), np.float32)
        self._logits = np.empty((num_tokens, vocab), np.float32)
        everywhere = np.arange(num_tokens)
        self._arrays: dict[str, NDArray[Any]] = {
            "hidden": self._hidden,
            "wanted": everywhere,
            "logits.rows": everywhere,
            "shown": np.array([], np.int64),
            "packed_shape": np.array([1, num_tokens, -1], np.int64),
            "zero_points": np.full(num_tokens, ZERO_POINT, np.uint8),
            "logits": self._logits,
            "states": np.empty((0, hidden), np.float32),
        }
        for token in range(num_tokens):
            self._arrays[f"seqlens_k.{token}"] = self._lengths[token]
            self._arrays[f"total_length.{token}"] = self._totals[token]
        self._bindings: dict[int, Any] = {}  # by the row of the cache

    def read(self, row: Row, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Append a row's tokens, of which `hidden` [tokens, size] are the embeddings; logits of all of them.

        Fewer tokens than the graph reads are filled up, and what is not theirs is forgotten again: there has to be room
        for as many as it reads.
        """
        count = len(row.tokens)
        self._hidden[0, :count] = hidden
        for token in range(self.num_tokens):
            self._lengths[token][0] = row.position + token
            self._totals[token][...] = row.position + token + 1
        place = self._cache.row(row.slot)
        if place not in self._bindings:
            self._bindings[place] = self._bind(place)
        self._session.run_with_iobinding(self._bindings[place])
        self._cache.grow(row.slot, row.position + self.num_tokens)
        self._cache.truncate(row.slot, row.position + count)
        return self._logits[:count]

    def _bind(self, place: int) -> Any:
        arrays = dict(self._arrays)
        for index, buffer in enumerate(self._cache.buffers):
            name = f"{index // 2}.{('key', 'value')[index % 2]}"
            row = buffer[place : place + 1]
            arrays[f"past.{name}"] = arrays[f"present.{name}"] = row
            for token in range(self.num_tokens - 1):
                arrays[f"present.{name}.{token}"] = row
        io = self._session.io_binding()
        for value in self._session.get_inputs():
            _bind(io.bind_input, value.name, arrays[value.name])
        for value in self._session.get_outputs():
            _bind(io.bind_output, value.name, arrays[value.name])
        return io


def _bind(bind: Any, name: str, array: NDArray[Any]) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
