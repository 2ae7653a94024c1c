"""Writes an ONNX model whose weights lie in a file beside it, one tensor at a time.

A protobuf message may not pass 2 GB, so every weight goes to `weights.bin` as it is made and the model
only says where it lies (ONNX external data). At no time is more than one weight in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

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


class GraphBuilder:
    """Collects nodes and writes weights; `save` writes the model."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._shared: set[str] = set()
        self._weights = (directory / WEIGHTS_FILE).open("wb")

    def __enter__(self) -> GraphBuilder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._weights.close()

    def input(self, name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> str:
        """Declare a graph input; strings are symbolic dimensions."""
        self._inputs.append(_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> None:
        """Declare that the value `name` leaves the graph."""
        self._outputs.append(_value_info(name, dtype, shape))

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Store a weight under a unique name."""
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        if array.nbytes < INLINE_BYTES:
            tensor.raw_data = array.tobytes()
        else:
            self._weights.write(b"\0" * (-self._weights.tell() % ALIGNMENT))
            location = {"location": WEIGHTS_FILE, "offset": self._weights.tell(), "length": array.nbytes}
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in location.items():
                tensor.external_data.add(key=key, value=str(value))
            np.ascontiguousarray(array).tofile(self._weights)
        self._initializers.append(tensor)
        return name

    def shared(self, name: str, array: NDArray[Any]) -> str:
        """A small constant that many nodes read; stored at first use."""
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
        output = f"{operator}_{len(self._nodes)}"
        if ints is not None:
            inputs = [*inputs, self.ints(*ints)]
        self.node(operator, inputs, [output], domain=domain, **attributes)
        return output

    def node(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> None:
        """Append a node whose outputs have these names; an empty name leaves an optional one out."""
        self._nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **attributes))

    def save(self) -> None:
        """Write the model beside its weights."""
        self._weights.flush()
        graph = helper.make_graph(self._nodes, "decoder", self._inputs, self._outputs, self._initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="arriero")
        (self._directory / MODEL_FILE).write_bytes(model.SerializeToString())


def _value_info(name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
