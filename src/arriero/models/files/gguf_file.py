"""The GGUF container: metadata fields and tensors of one file, each read when it is asked for.

The header is parsed here because the `gguf` package's reader takes seconds for a vocabulary of 49,152
tokens and trusts every length in the file; the quantised blocks are decoded by `gguf.quants`.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from arriero.errors import ModelLoadError
from arriero.models.decoders.layout import check_finite

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_STRING = 8
_ARRAY = 9
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_DEFAULT_ALIGNMENT = 32
_MOST_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class TensorType:
    """How a tensor is stored: blocks of `block_size` values along its last axis, `block_bytes` bytes each."""

    name: str
    block_size: int
    block_bytes: int


TENSOR_TYPES: Mapping[int, TensorType] = MappingProxyType(
    {
        0: TensorType("F32", 1, 4),
        1: TensorType("F16", 1, 2),
        2: TensorType("Q4_0", 32, 18),
        3: TensorType("Q4_1", 32, 20),
        6: TensorType("Q5_0", 32, 22),
        7: TensorType("Q5_1", 32, 24),
        8: TensorType("Q8_0", 32, 34),
        12: TensorType("Q4_K", 256, 144),
        13: TensorType("Q5_K", 256, 176),
        14: TensorType("Q6_K", 256, 210),
        30: TensorType("BF16", 1, 2),
    }
)
"""The storage types that can be read, by their number in the file."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor's entry in the header: shape outermost axis first ([out, in]), byte offset in the file."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes that the tensor takes in the file."""
        return math.prod(self.shape) // self.type.block_size * self.type.block_bytes


class GGUFFile:
    """One memory-mapped GGUF file; opening it reads the metadata, nothing reads all of the weights at once.

    Raises `ModelLoadError`, here and when tensors are looked at, if the file is missing, truncated or malformed.
    """

    path: Path
    fields: Mapping[str, Any]
    """Every metadata field as plain Python values: bool, int, float, str, or a list of one of these."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = _map(path)
        cursor = _Cursor(path, self._data)
        self._num_tensors, num_fields = _counts(cursor)
        self.fields = MappingProxyType(_fields(cursor, num_fields))
        self._tensors_offset = cursor.offset

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the file by its name there, each known to lie inside the file."""
        cursor = _Cursor(self.path, self._data)
        cursor.offset = self._tensors_offset
        alignment = self.fields.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
            raise ModelLoadError(f"{self.path}: general.alignment is {alignment!r}, expected a power of two.")
        cursor.check_count(self._num_tensors, 24, "tensors")
        entries = [_tensor_entry(cursor) for _ in range(self._num_tensors)]
        start = -(-cursor.offset // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, type_id, offset in entries:
            if name in tensors:
                raise ModelLoadError(f"{self.path}: tensor {name} is listed twice.")
            tensors[name] = self._checked(name, shape, type_id, start + offset)
        return MappingProxyType(tensors)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """The named tensor as a new float32 array of its shape; raises `ModelLoadError` when there is none."""
        info = self.tensors.get(name)
        if info is None:
            raise ModelLoadError(f"{self.path}: has no tensor {name}.")
        raw = self._data[info.offset : info.offset + info.num_bytes]
        return check_finite(self.path, name, _decode(raw, info))

    def _checked(self, name: str, shape: tuple[int, ...], type_id: int, offset: int) -> TensorInfo:
        kind = TENSOR_TYPES.get(type_id)
        if kind is None:
            supported = ", ".join(known.name for known in TENSOR_TYPES.values())
            raise ModelLoadError(
                f"{self.path}: tensor {name} is stored as {_type_name(type_id)}, which Arriero does not read; "
                f"it reads {supported}."
            )
        if shape[-1] % kind.block_size:
            raise ModelLoadError(
                f"{self.path}: tensor {name} has rows of {shape[-1]} values, "
                f"which is not a multiple of {kind.name}'s block of {kind.block_size}."
            )
        info = TensorInfo(name, shape, kind, offset)
        if offset + info.num_bytes > len(self._data):
            raise ModelLoadError(
                f"{self.path}: tensor {name} should end at byte {offset + info.num_bytes:,}, "
                f"but the file has only {len(self._data):,} bytes: it is truncated or damaged."
            )
        return info


_held: WeakValueDictionary[tuple[Path, int, int], GGUFFile] = WeakValueDictionary()


def open_gguf(path: Path) -> GGUFFile:
    """The file, read once for all that hold it at the same time: a header with a vocabulary takes a while.

    Raises `ModelLoadError` as `GGUFFile` does.
    """
    try:
        status = path.stat()
    except OSError:
        return GGUFFile(path)  # which says what is wrong
    key = path, status.st_size, status.st_mtime_ns
    file = _held.get(key)
    if file is None:
        file = _held[key] = GGUFFile(path)
    return file


def read_metadata(path: Path) -> Mapping[str, Any]:
    """The metadata of a GGUF file without its tensors, as plain Python values; raises `ModelLoadError`."""
    return open_gguf(path).fields


class _Cursor:
    """Reads the header from front to back and turns every length that cannot be true into `ModelLoadError`."""

    def __init__(self, path: Path, data: NDArray[np.uint8]) -> None:
        self.path = path
        self.view = data.data
        self.offset = 0

    def damaged(self, what: str) -> ModelLoadError:
        return ModelLoadError(f"{self.path}: {what} at byte {self.offset:,}: the file is truncated or damaged.")

    def check_count(self, count: int, least_bytes: int, what: str) -> None:
        if count * least_bytes > len(self.view) - self.offset:
            raise self.damaged(f"announces {count:,} {what}, more than the rest of the file can hold,")

    def integer(self, form: struct.Struct) -> int:
        if self.offset + form.size > len(self.view):
            raise self.damaged("the header ends too early")
        value: int = form.unpack_from(self.view, self.offset)[0]
        self.offset += form.size
        return value

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        """Kept free of calls in its loop: a vocabulary and its merges are a hundred thousand strings."""
        self.check_count(count, _U64.size, "strings")
        view, offset, end, unpack = self.view, self.offset, len(self.view), _U64.unpack_from
        result = []
        for _ in range(count):
            start = offset + 8
            if start > end:
                raise self.damaged("the header ends too early")
            offset = start + unpack(view, offset)[0]
            if offset > end:
                raise self.damaged("a string is longer than the rest of the file")
            try:
                result.append(str(view[start:offset], "utf-8"))
            except UnicodeDecodeError:
                self.offset = start
                raise self.damaged("a string is not UTF-8") from None
        self.offset = offset
        return result

    def numbers(self, dtype: np.dtype[Any], count: int) -> list[Any]:
        self.check_count(count, dtype.itemsize, "numbers")
        values: list[Any] = np.frombuffer(self.view, dtype, count, self.offset).tolist()
        self.offset += count * dtype.itemsize
        return values


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        if path.stat().st_size == 0:
            raise ModelLoadError(f"{path}: the file is empty.")
        return np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _counts(cursor: _Cursor) -> tuple[int, int]:
    """Tensors and metadata fields, from the fixed start of the file."""
    if bytes(cursor.view[:4]) != b"GGUF":
        raise ModelLoadError(f"{cursor.path}: is not a GGUF file (it does not start with the letters GGUF).")
    cursor.offset = 4
    version = cursor.integer(_U32)
    if version not in (2, 3):
        raise ModelLoadError(f"{cursor.path}: is GGUF version {version}, Arriero reads little-endian versions 2 and 3.")
    return cursor.integer(_U64), cursor.integer(_U64)


def _fields(cursor: _Cursor, count: int) -> dict[str, Any]:
    cursor.check_count(count, 13, "metadata fields")
    fields: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string()
        if key in fields:
            raise cursor.damaged(f"metadata field {key} is listed twice")
        fields[key] = _value(cursor, key)
    return fields


def _value(cursor: _Cursor, key: str) -> Any:
    kind = cursor.integer(_U32)
    if kind == _ARRAY:
        kind = cursor.integer(_U32)
        count = cursor.integer(_U64)
    else:
        count = None
    if kind == _STRING:
        values: list[Any] = cursor.strings(1 if count is None else count)
    elif kind in _SCALARS:
        values = cursor.numbers(_SCALARS[kind], 1 if count is None else count)
    else:
        raise cursor.damaged(f"metadata field {key} has the unknown type {kind}")
    return values[0] if count is None else values


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string()
    num_dimensions = cursor.integer(_U32)
    if not 1 <= num_dimensions <= _MOST_DIMENSIONS:
        raise cursor.damaged(f"tensor {name} has {num_dimensions} dimensions")
    # The file lists the innermost axis first.
    shape = tuple(reversed([cursor.integer(_U64) for _ in range(num_dimensions)]))
    if 0 in shape:
        raise cursor.damaged(f"tensor {name} has the shape {list(shape)}")
    return name, shape, cursor.integer(_U32), cursor.integer(_U64)


def _decode(raw: NDArray[np.uint8], info: TensorInfo) -> NDArray[np.float32]:
    if info.type.name == "F32":
        return np.array(raw.view("<f4"), dtype=np.float32).reshape(info.shape)
    if info.type.name == "F16":
        return raw.view("<f2").astype(np.float32).reshape(info.shape)
    # Imported here: the package costs a quarter of a second, and metadata alone does not need it.
    from gguf import GGMLQuantizationType, quants

    rows = np.asarray(raw).reshape(*info.shape[:-1], -1)
    with np.errstate(all="ignore"):  # scales that are not finite are reported by the caller, with the tensor's name
        values: NDArray[np.float32] = quants.dequantize(rows, GGMLQuantizationType[info.type.name])
    return values


def _type_name(type_id: int) -> str:
    from gguf import GGMLQuantizationType

    try:
        return GGMLQuantizationType(type_id).name
    except ValueError:
        return f"the unknown type {type_id}"
