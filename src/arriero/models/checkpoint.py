"""Opens a model's weights, whatever they are stored in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from arriero.errors import ModelLoadError
from arriero.models.decoders.gguf_checkpoint import GGUFCheckpoint
from arriero.models.kind import refuse_adapter

if TYPE_CHECKING:
    from arriero.models.decoders.directory import DirectoryCheckpoint


def open_checkpoint(path: Path) -> GGUFCheckpoint | DirectoryCheckpoint:
    """The `Checkpoint` at `path`: a GGUF file, or a Hugging Face directory with config.json and safetensors.

    Names, types and shapes of all tensors are checked here; the weights themselves are read when asked for.

    Raises:
        ModelLoadError: nothing is there, or it is damaged, incomplete or not supported.
    """
    if path.is_dir():
        from arriero.models.decoders.directory import DirectoryCheckpoint  # which takes a while to import

        refuse_adapter(path)
        return DirectoryCheckpoint(path)
    if path.is_file():
        return GGUFCheckpoint(path)
    raise ModelLoadError(f"{path}: there is no such file or directory.")
