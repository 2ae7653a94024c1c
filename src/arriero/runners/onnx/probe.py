"""Asks this machine's integer kernels what they can do, instead of guessing from its name."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from arriero.runners.onnx.builder import CONTRIB, IR_VERSION, OPSET


@cache
def signed_weights_are_exact() -> bool:
    """Whether unsigned activations times signed weights come out exact.

    On x86 without VNNI the kernel adds pairs of products in 16 bits, which saturate: 255 * 127 * 2 is more
    than 32767. There int8 weights must be stored unsigned, for which another, exact kernel is used.
    """
    depth, width = 64, 32
    node = helper.make_node("MatMulIntegerToFloat", ["a", "b", "one", "one"], ["y"], domain=CONTRIB)
    one = numpy_helper.from_array(np.array(1, np.float32), "one")
    session = _session(node, np.uint8, np.full((depth, width), 127, np.int8), one)
    for rows in (1, 16):  # one row and many take different kernels
        product = session.run(None, {"a": np.full((rows, depth), 255, np.uint8)})[0]
        if not np.array_equal(product, np.full((rows, width), 255 * 127 * depth, np.float32)):
            return False
    return True


@cache
def products_keep_to_their_rows() -> bool:
    """Whether a row of a float product is the same, bit for bit, however many rows it is computed with.

    True where the kernels sum in one order for any number of rows, as onnxruntime's own do.
    """
    random = np.random.default_rng(1)
    for depth, width in ((8, 1536), (576, 24), (4096, 64)):
        session = _session(
            helper.make_node("MatMul", ["a", "b"], ["y"]),
            np.float32,
            random.standard_normal((depth, width), dtype=np.float32),
        )
        values = random.standard_normal((33, depth), dtype=np.float32)
        together = session.run(None, {"a": values})[0]
        for rows in (1, 2, 5, 16):
            if not np.array_equal(session.run(None, {"a": values[:rows]})[0], together[:rows]):
                return False
    return True


def _session(
    node: onnx.NodeProto, dtype: type[np.generic], weight: NDArray[Any], *others: onnx.TensorProto
) -> ort.InferenceSession:
    """A graph of one product `y` of rows `a` and a constant `b`, with what other constants the node reads."""
    depth, width = weight.shape
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("a", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["m", depth])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", width])],
        [numpy_helper.from_array(weight, "b"), *others],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
