"""Pickled weights written anew as safetensors, so that everything else reads one form.

Format of the files written: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from arriero.errors import ModelLoadError
from arriero.models.files.pickled import SINGLE
from arriero.models.sources.repository import HubName, indexed_files, needed_files
from arriero.runners.torch.description import first_line

_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def to_safetensors(source: Path, target: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write the model or adapter in the directory `source` to the empty directory `target`, one tensor at a time.

    `progress(done, total)` is called with the number of files. Raises `ModelLoadError` for a file that is damaged, or
    that holds anything but tensors: what else a pickle may hold can run code.
    """
    listed = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    kept = needed_files(HubName(str(source)), listed, code=True)
    pickles = [name for name in kept if name.endswith(".bin")]
    indices = [name for name in kept if name.endswith(".bin.index.json")]
    for index in indices:
        pickles += sorted(indexed_files(source / index, index))
    for done, name in enumerate(pickles):
        if progress:
            progress(done, len(pickles))
        file = target / _renamed(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, _read(source / name))
    for index in indices:
        listing = json.loads((source / index).read_bytes())["weight_map"]
        renamed = {tensor: _renamed(file) for tensor, file in listing.items()}
        (target / _renamed(index)).write_text(json.dumps({"metadata": {}, "weight_map": renamed}))
    for name in set(kept) - {*pickles, *indices}:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def _renamed(name: str) -> str:
    directory, _, base = name.rpartition("/")
    base = base.replace(SINGLE.partition(".")[0], "model").replace(".bin", ".safetensors")
    return f"{directory}/{base}".removeprefix("/")


def _read(file: Path) -> Mapping[str, torch.Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch makes of an odd pickle is told by what it raises
            # Files from before 2020 are no archives, and cannot be mapped.
            content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_archive(file))
    except pickle.UnpicklingError as error:
        raise ModelLoadError(
            f"{file}: is damaged, or a pickle of more than tensors, which could run code and is not read."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelLoadError(f"{file}: is not a whole file of PyTorch: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{file}: holds {type(content).__name__}, expected tensors by their names.")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.dtype not in _DTYPES:
            raise ModelLoadError(f"{file}: {name} is {type(tensor).__name__}, expected a tensor of plain numbers.")
    return content


def _is_archive(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(4) == b"PK\x03\x04"


def _write(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as content:
        content.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            content.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
