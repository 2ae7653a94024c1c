"""Which models are at hand: those of the catalog, those in the hub's cache, and what was converted of either."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from arriero.errors import ModelLoadError
from arriero.models.cache import Conversion, conversions, remove_conversion
from arriero.models.checkpoint import open_checkpoint
from arriero.models.encoders.encoder import open_encoder
from arriero.models.files.pickled import pickled_weights, pickles_identity
from arriero.models.kind import kind_of
from arriero.models.sources import download, hub_cache
from arriero.models.sources.catalog import catalog
from arriero.models.sources.repository import HubName, hub_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A model by the name that it is served by, and what of it is on this machine."""

    name: str
    origin: Literal["catalog", "hub", "path"]
    path: Path | None
    """Its directory or GGUF file; None when it is not downloaded, or not as a whole."""
    downloaded: int
    """Bytes in the caches; a path of the user's own is not counted."""
    conversions: tuple[Conversion, ...] = ()

    @property
    def converted(self) -> int:
        """Bytes that its conversions take."""
        return sum(conversion.size for conversion in self.conversions)


def inventory(cache: Path) -> list[Stored]:
    """Every entry of the catalog, and every model in the hub's cache."""
    known = conversions(cache)
    stored = [_of_catalog(name, cache) for name in catalog]
    stored += [
        Stored(name=repository.name, origin="hub", path=repository.path, downloaded=repository.size)
        for repository in hub_cache.repositories()
    ]
    return [_with_conversions(model, known) for model in stored]


def others(stored: list[Stored], cache: Path) -> int:
    """Bytes of the conversions that belong to none of these models: of paths, or made by another version."""
    return sum(conversion.size for conversion in conversions(cache)) - sum(model.converted for model in stored)


def find(name: str, cache: Path) -> Stored:
    """The model that `arriero serve` would take for `name`, as far as it is here; nothing is downloaded.

    Raises `ModelLoadError` for a name that cannot be one of a model.
    """
    path = Path(name).expanduser()
    repository = hub_name(name)
    known = next((entry for entry in catalog if entry.lower() == name.lower()), None)
    if _exists(path):
        stored = Stored(name=str(path), origin="path", path=path, downloaded=0)
    elif known is not None:
        stored = _of_catalog(known, cache)
    elif repository is not None:
        stored = _of_hub(name, repository)
    else:
        raise ModelLoadError(
            f"There is no model '{name}': neither in the catalog ({', '.join(catalog)}) nor as a path."
        )
    return _with_conversions(stored, conversions(cache))


def remove(stored: Stored, cache: Path) -> int:
    """Remove what was downloaded and converted of a model, but never a path of the user's own; the bytes freed.

    Raises `ModelLoadError` where a file cannot be removed, or a running server uses a conversion.
    """
    freed = 0
    for conversion in stored.conversions:
        if not remove_conversion(conversion):
            raise ModelLoadError(f"{stored.name} is in use: end the server that serves it first ({conversion.path}).")
        freed += conversion.size
    if stored.origin == "catalog":
        download.remove(stored.name, cache)
    elif stored.origin == "hub" and (repository := hub_name(stored.name)) is not None:
        hub_cache.remove(repository)
    return freed + stored.downloaded


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long to be a path, or not to be looked at
        return False


def _of_catalog(name: str, cache: Path) -> Stored:
    files = [path for path in (cache / "models" / name).rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return Stored(name=name, origin="catalog", path=download.downloaded(name, cache), downloaded=size)


def _of_hub(name: str, repository: HubName) -> Stored:
    size = hub_cache.cached_size(repository)
    return Stored(name=name, origin="hub", path=hub_cache.cached_path(repository), downloaded=size)


def _with_conversions(stored: Stored, known: list[Conversion]) -> Stored:
    if stored.path is None or not known:
        return stored
    identities = set(_identities(stored.path))
    if stored.path.is_dir() and pickled_weights(stored.path):
        own = pickles_identity(stored.path)
        copies = [conversion.path for conversion in known if conversion.checkpoint == own]
        identities.update([own], *map(_identities, copies))
    mine = tuple(conversion for conversion in known if conversion.checkpoint in identities)
    return replace(stored, conversions=mine)


def _identities(path: Path) -> Iterator[str]:
    """What conversions of the model at `path` call it; nothing for a model that is not converted."""
    try:
        yield open_encoder(path).identity if kind_of(path) == "encoder" else open_checkpoint(path).identity
    except ModelLoadError:
        return
