"""From what a user names to a file or directory on this machine."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from arriero.errors import ModelLoadError
from arriero.models.catalog import DEFAULT_MODEL, catalog
from arriero.models.download import Progress, fetch


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model at hand: the id it goes by unless the user gives another, and its GGUF file or directory."""

    name: str
    path: Path


def resolve(model: str | None, cache: Path, progress: Progress | None = None) -> Resolved:
    """The model that `model` names: None for the default, a catalog name in any case, or a path.

    The id is the catalog's name, the file's name without `.gguf`, or the directory's name. A catalog entry
    is downloaded to `cache` if need be.

    Raises:
        ModelLoadError: nothing of that name, with what would be accepted; or the download fails.
    """
    wanted = DEFAULT_MODEL if model is None else model
    for name in catalog:
        if name.lower() == wanted.lower():
            return Resolved(name, fetch(name, cache, progress))
    try:
        return _local(wanted)
    except (OSError, RuntimeError) as error:  # no access, too long a name, no home directory for ~
        raise ModelLoadError(f"{wanted}: cannot be looked at: {error}.") from error


def _local(wanted: str) -> Resolved:
    path = Path(wanted).expanduser()
    if path.is_dir():
        return _directory(path)
    if path.is_file():
        return _file(path)
    raise ModelLoadError(
        f"There is no model '{wanted}': give a catalog name ({', '.join(catalog)}), the path of a GGUF file, "
        f"or a Hugging Face directory.{_suggestion(wanted, path)}"
    )


def _directory(path: Path) -> Resolved:
    if (path / "config.json").is_file():
        return Resolved(path.resolve().name, path)
    files = sorted(path.glob("*.gguf"))
    hint = f" It holds {files[0].name}: give that file's path." if files else ""
    raise ModelLoadError(f"{path}: has no config.json, so it is not a Hugging Face directory.{hint}")


def _file(path: Path) -> Resolved:
    if path.suffix == ".safetensors" or path.name == "config.json":
        raise ModelLoadError(f"{path}: give the directory it lies in, {path.absolute().parent}.")
    return Resolved(path.stem if path.suffix.lower() == ".gguf" else path.name, path)


def _suggestion(wanted: str, path: Path) -> str:
    """The nearest catalog name, or model beside where the path points."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    models = [str(one) for one in beside if one.suffix.lower() == ".gguf" or (one / "config.json").is_file()]
    names = {name.lower(): name for name in (*catalog, *models)}
    close = difflib.get_close_matches(wanted.lower(), names, n=1)
    return f" Did you mean {names[close[0]]}?" if close else ""
