"""Writes an ONNX model whose weights lie in a file beside it, one tensor at a time.

A protobuf message may not pass 2 GB, so every weight goes to `weights.bin` as it is made and the model
only says where it lies (ONNX external data). At no time is more than one weight in memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "weights.bin"
OPSET = 21
IR_VERSION = 10
CONTRIB = "com.microsoft"
"""onnxruntime's own operators."""
# onnxruntime maps external data into memory; offsets at page boundaries let it.
ALIGNMENT = 4096
# Below this a tensor stays in the model itself, where the graph optimiser can see it.
INLINE_BYTES = 1024


_LINEARS = "arriero.linears"
"""Key of a model's metadata under which its linear layers are listed."""


class Linear(NamedTuple):
    """A linear layer of a graph, for something to be added to what it gives.

    Rows and product may lack a factor [rows, 1], the name of a value; it is empty where they lack nothing.
    """

    name: str
    """Of the weight."""
    rows: str
    """float32 [rows, in]."""
    rows_scale: str
    product: str
    """float32 [rows, out]; later nodes read this name."""
    product_scale: str


class GraphBuilder:
    """Collects nodes and writes weights; `save` writes the model."""

    def __init__(self, directory: Path, *, weights_file: str = WEIGHTS_FILE, prefix: str = "") -> None:
        """`prefix` begins the names that the builder makes up, so that they can stand in a graph of another one."""
        self._directory = directory
        self._weights_file = weights_file
        self._prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.linears: list[Linear] = []
        self._shared: set[str] = set()
        self._weights = (directory / weights_file).open("wb")

    def __enter__(self) -> GraphBuilder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._weights.close()

    def input(self, name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> str:
        """Declare a graph input; strings are symbolic dimensions."""
        self.inputs.append(_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> None:
        """Declare that the value `name` leaves the graph."""
        self.outputs.append(_value_info(name, dtype, shape))

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Store a weight under a unique name."""
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        if array.nbytes < INLINE_BYTES:
            tensor.raw_data = array.tobytes()
        else:
            self._weights.write(b"\0" * (-self._weights.tell() % ALIGNMENT))
            location = {"location": self._weights_file, "offset": self._weights.tell(), "length": array.nbytes}
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in location.items():
                tensor.external_data.add(key=key, value=str(value))
            np.ascontiguousarray(array).tofile(self._weights)
        self.initializers.append(tensor)
        return name

    def shared(self, name: str, array: NDArray[Any]) -> str:
        """A small constant that many nodes read; stored at first use."""
        name = self._prefix + name
        if name not in self._shared:
            self._shared.add(name)
            self.constant(name, array)
        return name

    def ints(self, *values: int) -> str:
        """A constant int64 vector (axes, sizes)."""
        return self.shared("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def op(
        self,
        operator: str,
        inputs: Sequence[str],
        *,
        ints: Sequence[int] | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Append a node with one output and return that output's name.

        `ints` becomes a last input that holds these constants (axes, sizes).
        """
        output = f"{self._prefix}{operator}_{len(self.nodes)}"
        if ints is not None:
            inputs = [*inputs, self.ints(*ints)]
        self.node(operator, inputs, [output], domain=domain, **attributes)
        return output

    def node(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> None:
        """Append a node whose outputs have these names; an empty name leaves an optional one out."""
        self.nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **attributes))

    def save(self) -> None:
        """Write the model beside its weights."""
        self._weights.flush()
        graph = helper.make_graph(self.nodes, "decoder", self.inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="arriero")
        model.metadata_props.add(key=_LINEARS, value=json.dumps(self.linears))
        (self._directory / MODEL_FILE).write_bytes(model.SerializeToString())


def linears(model: onnx.ModelProto) -> list[Linear]:
    """The linear layers of a model that a `GraphBuilder` saved, in their order."""
    listed = next(entry.value for entry in model.metadata_props if entry.key == _LINEARS)
    return [Linear(*entry) for entry in json.loads(listed)]


def _value_info(name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
