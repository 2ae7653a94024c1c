"""Weight formats against their definitions, computed the long way in numpy."""

import numpy as np
import onnxruntime as ort
import pytest

from arriero.runners.onnx.builder import MODEL_FILE, GraphBuilder
from arriero.runners.onnx.formats import Blockwise, Fp32, Int8, linear, quantise_blocks
from arriero.runners.onnx.probe import signed_weights_are_exact

EXACT = Int8(signed_weights=signed_weights_are_exact())


def layer(tmp_path, form, weight, values, *, scale=None, least=None):
    """A linear layer of this format as a graph of its own, run on float32 rows [rows, in]."""
    with GraphBuilder(tmp_path) as graph:
        graph.input("x", np.float32, ["rows", weight.shape[1]])
        graph.input("zero_points", np.uint8, ["rows"])
        if scale is not None:
            graph.input("scale", np.float32, ["rows", 1])
        rows = form.rows(graph, "x", scale=None if scale is None else "scale", zero_points="zero_points", least=least)
        graph.node("Identity", [linear(graph, form, rows, "w", weight)], ["y"])
        graph.output("y", np.float32, ["rows", weight.shape[0]])
        graph.save()
    session = ort.InferenceSession(str(tmp_path / MODEL_FILE), providers=["CPUExecutionProvider"])
    feeds = {"x": values, "zero_points": np.full(len(values), 128, np.uint8), "scale": scale}
    return session.run(None, {name.name: feeds[name.name] for name in session.get_inputs()})[0]


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_fp32_is_a_product(tmp_path, rng):
    weight = rng.standard_normal((12, 40), dtype=np.float32)
    values = rng.standard_normal((5, 40), dtype=np.float32)
    np.testing.assert_allclose(layer(tmp_path, Fp32(), weight, values), values @ weight.T, atol=1e-5)


@pytest.mark.parametrize("form", [EXACT, Int8(signed_weights=False)], ids=lambda form: form.variant)
def test_int8_is_the_exact_integer_product(tmp_path, rng, form):
    weight = rng.standard_normal((48, 200), dtype=np.float32)
    magnitudes = np.float32(10) ** np.arange(-3, 4, dtype=np.float32)[:, None]
    values = rng.standard_normal((7, 200), dtype=np.float32) * magnitudes
    values[1] = np.abs(values[1]).max()  # all at the end of the range, where 16-bit sums would saturate
    weight[3] = np.abs(weight[3]).max()
    weight_scale = np.abs(weight).max(1) / np.float32(127)
    row_scale = np.abs(values).max(1) * np.float32(1 / 127)
    integers = np.rint(values / row_scale[:, None]).astype(np.int64)
    weight_integers = np.rint(weight / weight_scale[:, None]).astype(np.int64)
    expected = (integers @ weight_integers.T) * weight_scale * row_scale[:, None]
    np.testing.assert_allclose(layer(tmp_path, form, weight, values), expected, rtol=1e-6)


def test_int8_rows_do_not_depend_on_their_neighbours(tmp_path, rng):
    weight = rng.standard_normal((64, 96), dtype=np.float32)
    values = rng.standard_normal((33, 96), dtype=np.float32)
    values[4] *= 1000
    together = layer(tmp_path, EXACT, weight, values)
    for row in (0, 4, 32):
        alone = layer(tmp_path, EXACT, weight, values[row : row + 1])
        assert alone.tobytes() == together[row].tobytes()


@pytest.mark.parametrize("form", [EXACT, Int8(signed_weights=False)], ids=lambda form: form.variant)
def test_int8_rows_above_a_least_value_use_the_whole_range(tmp_path, rng, form):
    weight = rng.standard_normal((48, 200), dtype=np.float32)
    values = np.abs(rng.standard_normal((7, 200), dtype=np.float32)) * 5 - np.float32(0.25)
    weight_scale = np.abs(weight).max(1) / np.float32(127)
    row_scale = (values + np.float32(0.25)).max(1) * np.float32(1 / 255)
    integers = np.rint((values + np.float32(0.25)) / row_scale[:, None]).astype(np.int64)
    weight_integers = np.rint(weight / weight_scale[:, None]).astype(np.int64)
    expected = (integers * row_scale[:, None] - 0.25) @ (weight_integers.T * weight_scale)
    got = layer(tmp_path, form, weight, values, least=-0.25)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)


def test_int8_of_a_row_of_zeros_is_zero(tmp_path, rng):
    weight = rng.standard_normal((8, 32), dtype=np.float32)
    weight[2] = 0
    values = np.zeros((2, 32), np.float32)
    values[1, 5] = 3
    result = layer(tmp_path, EXACT, weight, values)
    assert (result[0] == 0).all()
    assert result[1, 2] == 0
    np.testing.assert_allclose(result[1], 3 * weight[:, 5], atol=0.1)


@pytest.mark.parametrize("form", [Fp32(), EXACT, Blockwise()], ids=lambda form: form.variant)
def test_a_scale_that_rows_lack_is_applied_once(tmp_path, rng, form):
    weight = rng.standard_normal((16, 64), dtype=np.float32)
    values = rng.standard_normal((3, 64), dtype=np.float32)
    scale = np.array([[0.5], [2], [8]], np.float32)
    plain = layer(tmp_path, form, weight, values)
    np.testing.assert_allclose(layer(tmp_path, form, weight, values, scale=scale), plain * scale, rtol=1e-5)


def symmetric_4_bit(weight):
    """GGUF's Q4_0 restored: in each block of 32 the largest magnitude becomes -8 steps."""
    padded = np.pad(weight, [(0, 0), (0, -weight.shape[1] % 32)])
    blocks = padded.reshape(len(weight), -1, 32)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(2)[..., None], 2)
    step = np.where(largest == 0, 1, largest / -8)
    restored = (np.clip(np.floor(blocks / step + 8.5), 0, 15) - 8) * step
    return restored.reshape(padded.shape)[:, : weight.shape[1]]


@pytest.mark.parametrize("columns", [32, 96, 100, 576])
def test_int4_blocks_are_near_the_weights(tmp_path, rng, columns):
    weight = rng.standard_normal((24, columns), dtype=np.float32)
    weight[0, :32] = 0
    packed, scales, zeros = quantise_blocks(weight, 32)
    blocks = -(-columns // 32)
    assert packed.shape == (24, blocks, 16)
    assert zeros.shape == (24, -(-blocks // 2))
    values = np.stack([packed & 15, packed >> 4], -1).reshape(24, blocks, 32).astype(np.float32)
    points = np.stack([zeros & 15, zeros >> 4], -1).reshape(24, -1)[:, :blocks].astype(np.float32)
    restored = ((values - points[..., None]) * scales[..., None]).reshape(24, -1)[:, :columns]
    assert (restored[0, :32] == 0).all()
    assert np.square(restored - weight).sum() < 0.9 * np.square(symmetric_4_bit(weight) - weight).sum()
    rows = np.eye(columns, dtype=np.float32)[:16]
    np.testing.assert_allclose(layer(tmp_path, Blockwise(block=32), weight, rows), restored[:, :16].T, atol=1e-4)


def test_the_vocabulary_projection_of_int4_has_8_bits(tmp_path, rng):
    weight = rng.standard_normal((24, 100), dtype=np.float32)
    rows = np.eye(100, dtype=np.float32)[:16]
    result = layer(tmp_path, Blockwise().head, weight, rows)
    assert np.abs(result - weight[:, :16].T).max() < np.abs(weight).max() / 200
