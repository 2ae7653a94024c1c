"""The tensors of a directory, in one safetensors file or in several that an index names; read one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.files.json_files import read_json

_SINGLE = "model.safetensors"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_INDEX = "model.safetensors.index.json"
_OTHER_FORMS = {
    ".h5": "weights of TensorFlow",
    ".msgpack": "weights of Flax",
    ".onnx": "a finished graph",
    ".ckpt": "a checkpoint of a training",
    ".pt": "a pickle of PyTorch",
    ".pth": "a pickle of PyTorch",
    ".bin": "a file of unknown contents",
    ".safetensors": "weights under a name of their own",
}
# safetensors hands out bfloat16 only where numpy knows the type.
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


def _is_derived(name: str) -> bool:
    """Old files carry the rotary frequencies, which follow from the configuration."""
    return name.endswith(".rotary_emb.inv_freq")


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of one safetensors file, not read yet."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    slice: Any
    first: int = 0
    """The tensor's first row in `slice`, which may hold several tensors."""

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start..stop-1 along the first dimension."""
        try:
            part = self.slice[self.first + start : self.first + min(stop, self.shape[0])]
            return np.asarray(part, dtype=np.float32)
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"{self.file}: tensor {self.name} cannot be read: {error}.") from error


def open_weights(path: Path, ignored: Callable[[str], bool] = _is_derived) -> dict[str, Weight]:
    """Every tensor of the files in `path` by its name, but those that are `ignored`.

    Raises `ModelLoadError` for a file that is missing or damaged, and for a type of numbers that is not read.
    """
    if (path / _SINGLE).exists():
        return open_tensors(path / _SINGLE, ignored)
    if not (path / _INDEX).exists():
        if any((path / pickled).exists() for pickled in _PICKLED):
            raise UnsupportedModel(
                f"{path}: its weights are pickled ({_PICKLED[0]}), which the torch engine alone reads."
            )
        raise ModelLoadError(f"{path}: has neither {_SINGLE} nor {_INDEX}{_instead(path)}.")
    listed = read_json(path / _INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(_is_plain_name(file) for file in listed.values()):
        raise ModelLoadError(f"{path / _INDEX}: weight_map does not map tensor names to files beside it.")
    weights: dict[str, Weight] = {}
    for file in sorted(set(listed.values())):
        for name, weight in open_tensors(path / file, ignored).items():
            if name in weights:
                raise ModelLoadError(f"{path / file}: tensor {name} is also in {weights[name].file.name}.")
            weights[name] = weight
    for name, file in listed.items():
        if ignored(name):
            continue
        if name not in weights or weights[name].file.name != file:
            raise ModelLoadError(f"{path / file}: tensor {name} is missing, though {_INDEX} lists it there.")
    return weights


def _instead(path: Path) -> str:
    """What weights there are in a form that is not read, and what helps."""
    others = [(file.name, _OTHER_FORMS[file.suffix]) for file in sorted(path.iterdir()) if file.suffix in _OTHER_FORMS]
    if not others:
        return ""
    name, form = others[0]
    return f", but {name}, {form}, which Arriero does not read: save the model as safetensors with transformers"


def _is_plain_name(file: Any) -> bool:
    return isinstance(file, str) and bool(file) and Path(file).name == file


def open_tensors(file: Path, ignored: Callable[[str], bool] = _is_derived) -> dict[str, Weight]:
    """Every tensor of one file; as `open_weights`."""
    try:
        handle: Any = safe_open(file, framework="numpy")
        names = [name for name in handle.keys() if not ignored(name)]  # noqa: SIM118
        return {name: _weight(file, name, handle.get_slice(name)) for name in names}
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{file}: is not a whole safetensors file: {error}.") from error


def _weight(file: Path, name: str, part: Any) -> Weight:
    dtype, shape = part.get_dtype(), tuple(part.get_shape())
    if dtype not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise ModelLoadError(f"{file}: tensor {name} is stored as {dtype}, Arriero reads {known}.")
    return Weight(file, name, shape, dtype, part)
