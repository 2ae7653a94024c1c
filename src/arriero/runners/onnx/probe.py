"""Asks this machine's integer kernels what they can do, instead of guessing from its name."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime as ort
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
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, ["m", depth])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", width])],
        [
            numpy_helper.from_array(np.full((depth, width), 127, np.int8), "b"),
            numpy_helper.from_array(np.array(1, np.float32), "one"),
        ],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for rows in (1, 16):  # one row and many take different kernels
        product = session.run(None, {"a": np.full((rows, depth), 255, np.uint8)})[0]
        if not np.array_equal(product, np.full((rows, width), 255 * 127 * depth, np.float32)):
            return False
    return True
