"""From what a user names to a file or directory on this machine."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from arriero.errors import ModelLoadError
from arriero.models.sources import hub
from arriero.models.sources.catalog import DEFAULT_MODEL, catalog
from arriero.models.sources.download import Progress, fetch
from arriero.models.sources.repository import hub_name

_OTHER_FILES = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".ckpt", ".zip", ".gz", ".whl")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model at hand: the id it goes by unless the user gives another, and its GGUF file or directory."""

    name: str
    path: Path


def resolve(model: str | None, cache: Path, progress: Progress | None = None, *, code: bool = False) -> Resolved:
    """The model or adapter that `model` names: None for the default, a path, a catalog name in any case, or a hub id.

    What is there as a path is that. A hub id is `org/name`, `org/name:Q4_K_M` or `org/name/file.gguf`, with or
    without `@revision`. The id it goes by is the catalog's name, `org/name`, the file's name without `.gguf`, or the
    directory's name. A catalog entry is downloaded to `cache` if need be, a repository to the hub's own cache, with
    its Python files only if `code`.

    Raises:
        ModelLoadError: nothing of that name, with what would be accepted; or the download fails.
    """
    wanted = DEFAULT_MODEL if model is None else model
    try:
        path = Path(wanted).expanduser()
        if model is not None and path.exists():
            return _directory(path) if path.is_dir() else _file(path)
        for name in catalog:
            if name.lower() == wanted.lower():
                return Resolved(name, fetch(name, cache, progress))
        if (repository := hub_name(wanted)) is not None:
            found = hub.fetch(repository, progress, code=code)
            return Resolved(found.stem if found.suffix.lower() == ".gguf" else repository.repository, found)
        raise ModelLoadError(
            f"There is no model '{wanted}': give a catalog name ({', '.join(catalog)}), the path of a GGUF file, "
            f"a Hugging Face directory, or a hub id such as org/name.{_suggestion(wanted, path)}"
        )
    except (OSError, RuntimeError) as error:  # no access, too long a name, no home directory for ~
        raise ModelLoadError(f"{wanted}: cannot be looked at: {error}.") from error


def _directory(path: Path) -> Resolved:
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return Resolved(path.resolve().name, path)
    files = sorted(path.glob("*.gguf"))
    hint = f" It holds {files[0].name}: give that file's path." if files else ""
    raise ModelLoadError(f"{path}: has no config.json, so it is not a Hugging Face directory.{hint}")


def _file(path: Path) -> Resolved:
    if path.suffix in (".safetensors", ".bin", ".json", ".model") and (path.parent / "config.json").is_file():
        raise ModelLoadError(f"{path}: give the directory it lies in, {path.absolute().parent}.")
    if path.suffix in _OTHER_FILES:
        raise ModelLoadError(f"{path}: Arriero reads GGUF files and Hugging Face directories, no {path.suffix} files.")
    return Resolved(path.stem if path.suffix.lower() == ".gguf" else path.name, path)


def _suggestion(wanted: str, path: Path) -> str:
    """The nearest catalog name, or model beside where the path points."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    models = [str(one) for one in beside if one.suffix.lower() == ".gguf" or (one / "config.json").is_file()]
    names = {name.lower(): name for name in (*catalog, *models)}
    close = difflib.get_close_matches(wanted.lower(), names, n=1)
    return f" Did you mean {names[close[0]]}?" if close else ""
