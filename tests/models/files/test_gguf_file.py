from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arriero.errors import ModelLoadError
from arriero.models.files.gguf_file import TENSOR_TYPES, GGUFFile, open_gguf, read_metadata

FIELDS = {
    "a.u8": (gguf.GGUFValueType.UINT8, 200),
    "a.i8": (gguf.GGUFValueType.INT8, -3),
    "a.u16": (gguf.GGUFValueType.UINT16, 60000),
    "a.i16": (gguf.GGUFValueType.INT16, -300),
    "a.u32": (gguf.GGUFValueType.UINT32, 4_000_000_000),
    "a.i32": (gguf.GGUFValueType.INT32, -70000),
    "a.f32": (gguf.GGUFValueType.FLOAT32, 0.5),
    "a.bool": (gguf.GGUFValueType.BOOL, True),
    "a.string": (gguf.GGUFValueType.STRING, "a text, ein Löwe, 🦙"),
    "a.u64": (gguf.GGUFValueType.UINT64, 2**63),
    "a.i64": (gguf.GGUFValueType.INT64, -(2**62)),
    "a.f64": (gguf.GGUFValueType.FLOAT64, 1e300),
}
LISTS = {"b.strings": ["", "🦙", "x" * 300], "b.ints": [1, -2, 3], "b.floats": [0.5, -1.5], "b.bools": [True, False]}


def write(path: Path, tensors: dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType]]) -> Path:
    writer = gguf.GGUFWriter(path, "test")
    for key, (kind, value) in FIELDS.items():
        writer.add_key_value(key, value, kind)
    for key, values in LISTS.items():
        writer.add_array(key, values)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(3)
    kinds = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0)
    values = {kind.name: random.standard_normal((2, 32), dtype=np.float32) for kind in kinds}
    tensors = {kind.name: (gguf.quants.quantize(values[kind.name], kind), kind) for kind in kinds}
    return write(tmp_path_factory.mktemp("gguf") / "small.gguf", tensors)


def read_everything(path: Path) -> None:
    file = GGUFFile(path)
    for name, info in file.tensors.items():
        assert file.tensor(name).shape == info.shape


def test_fields_are_plain_values(small_file: Path) -> None:
    fields = read_metadata(small_file)
    for key, (_, value) in FIELDS.items():
        assert fields[key] == value
        assert type(fields[key]) is type(value)
    for key, values in LISTS.items():
        assert fields[key] == values
    assert fields["general.architecture"] == "test"


# The published layouts of the blocks, decoded one value at a time:
# https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h and the dequantize_row functions of ggml-quants.c.


def half(block: bytes, offset: int) -> float:
    return float(struct.unpack_from("<e", block, offset)[0])


def signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def nibble(data: bytes, i: int) -> int:
    return data[i % 16] & 15 if i < 16 else data[i % 16] >> 4


def k_scale(scales: bytes, j: int) -> tuple[int, int]:
    """Scale and minimum of sub-block j, six bits each, packed into twelve bytes."""
    if j < 4:
        return scales[j] & 63, scales[j + 4] & 63
    return (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4, (scales[j + 4] >> 4) | (scales[j] >> 6) << 4


def k_nibble(data: bytes, i: int) -> int:
    """Groups of 64 values lie in 32 bytes, the first 32 in the low halves."""
    byte = data[i // 64 * 32 + i % 32]
    return byte & 15 if i % 64 < 32 else byte >> 4


def q6_k(b: bytes, i: int) -> float:
    part, rest = divmod(i, 128)
    quarter, position = divmod(rest, 32)
    low = b[part * 64 + quarter % 2 * 32 + position]
    low = low & 15 if quarter < 2 else low >> 4
    high = b[128 + part * 32 + position] >> 2 * quarter & 3
    return half(b, 208) * signed(b[192 + i // 16]) * ((low | high << 4) - 32)


LITERAL: dict[str, Callable[[bytes, int], float]] = {
    "F32": lambda b, i: struct.unpack("<f", b)[0],
    "F16": lambda b, i: half(b, 0),
    "BF16": lambda b, i: struct.unpack("<f", b"\0\0" + b)[0],
    "Q4_0": lambda b, i: half(b, 0) * (nibble(b[2:], i) - 8),
    "Q4_1": lambda b, i: half(b, 0) * nibble(b[4:], i) + half(b, 2),
    "Q5_0": lambda b, i: half(b, 0) * ((nibble(b[6:], i) | (b[2 + i // 8] >> i % 8 & 1) << 4) - 16),
    "Q5_1": lambda b, i: half(b, 0) * (nibble(b[8:], i) | (b[4 + i // 8] >> i % 8 & 1) << 4) + half(b, 2),
    "Q8_0": lambda b, i: half(b, 0) * signed(b[2 + i]),
    "Q4_K": lambda b, i: (
        half(b, 0) * k_scale(b[4:16], i // 32)[0] * k_nibble(b[16:], i) - half(b, 2) * k_scale(b[4:16], i // 32)[1]
    ),
    "Q5_K": lambda b, i: (
        half(b, 0) * k_scale(b[4:16], i // 32)[0] * (k_nibble(b[48:], i) | (b[16 + i % 32] >> i // 32 & 1) << 4)
        - half(b, 2) * k_scale(b[4:16], i // 32)[1]
    ),
    "Q6_K": q6_k,
}
SCALE_OFFSETS = {"Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,), "Q6_K": (208,), "F32": (), "F16": (), "BF16": ()}


def random_blocks(name: str, block_bytes: int, num_blocks: int) -> np.ndarray:
    """Random bits everywhere, but scales that are ordinary numbers."""
    random = np.random.default_rng(11)
    blocks = random.integers(0, 256, (num_blocks, block_bytes), dtype=np.uint8)
    if name in ("F32", "F16", "BF16"):
        blocks[:, -1] = blocks[:, -1] & 0x80 | 0x3C
    for offset in SCALE_OFFSETS.get(name, (0, 2)):
        scales = random.standard_normal((num_blocks, 1)).astype("<f2")
        blocks[:, offset : offset + 2] = scales.view(np.uint8)
    return blocks


def test_every_supported_type_has_a_literal_decoder() -> None:
    assert {kind.name for kind in TENSOR_TYPES.values()} == set(LITERAL)


@pytest.mark.parametrize("name", LITERAL)
def test_blocks_decode_as_published(name: str, tmp_path: Path) -> None:
    kind = next(kind for kind in TENSOR_TYPES.values() if kind.name == name)
    num_rows, blocks_per_row = 3, 2
    blocks = random_blocks(name, kind.block_bytes, num_rows * blocks_per_row)
    path = write(tmp_path / "one.gguf", {"t": (blocks.reshape(num_rows, -1), gguf.GGMLQuantizationType[name])})
    expected = [LITERAL[name](bytes(block), i) for block in blocks for i in range(kind.block_size)]
    result = GGUFFile(path).tensor("t")
    assert result.dtype == np.float32
    assert result.shape == (num_rows, blocks_per_row * kind.block_size)
    np.testing.assert_allclose(result.ravel(), expected, rtol=1e-5, atol=1e-5)


def test_unread_type_is_named(tmp_path: Path) -> None:
    data = np.zeros((1, 84), dtype=np.uint8)
    path = write(tmp_path / "one.gguf", {"t": (data, gguf.GGMLQuantizationType.Q2_K)})
    with pytest.raises(ModelLoadError, match=r"one\.gguf: tensor t is stored as Q2_K.*Q4_1"):
        _ = GGUFFile(path).tensors


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    data = np.array([[1.0, np.nan]], dtype=np.float32)
    path = write(tmp_path / "one.gguf", {"t": (data, gguf.GGMLQuantizationType.F32)})
    with pytest.raises(ModelLoadError, match=r"one\.gguf: tensor t .*not finite"):
        GGUFFile(path).tensor("t")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"GG", "not a GGUF file"),
        (b"PK\3\4" + bytes(100), "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "announces .* tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "announces .* metadata fields"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 2**40), "announces .* strings"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 0), "unknown type 9"),
        (b"GGUF" + struct.pack("<IQQQ1sIQ1s", 3, 0, 1, 1, b"k", 8, 1, b"\xff"), "not UTF-8"),
    ],
)
def test_malformed_headers_are_explained(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=rf"bad\.gguf: .*{message}"):
        _ = GGUFFile(path).tensors


def test_missing_file_and_directory_are_explained(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(ModelLoadError, match="cannot be read"):
            GGUFFile(path)


def test_every_truncation_is_noticed(small_file: Path, tmp_path: Path) -> None:
    content = small_file.read_bytes()
    cut = tmp_path / "cut.gguf"
    whole = max(info.offset + info.num_bytes for info in GGUFFile(small_file).tensors.values())
    for length in range(whole):
        cut.write_bytes(content[:length])
        with pytest.raises(ModelLoadError, match=r"cut\.gguf: "):
            read_everything(cut)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_gives_a_model_load_error_or_other_values(
    small_file: Path, tmp_path: Path, damage: list[tuple[int, int]]
) -> None:
    content = bytearray(small_file.read_bytes())
    for position, byte in damage:
        content[position % len(content)] = byte
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with suppress(ModelLoadError):
        read_everything(path)


def test_a_file_is_read_once_for_all_that_hold_it(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", {})
    held = open_gguf(path)
    assert open_gguf(path) is held
    write(path, {"t": (np.zeros((1, 32), np.float32), gguf.GGMLQuantizationType.F32)})
    assert list(open_gguf(path).tensors) == ["t"]
    with pytest.raises(ModelLoadError, match="missing"):
        open_gguf(tmp_path / "missing.gguf")
