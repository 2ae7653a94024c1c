"""What lies in the hub's cache, told without the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arriero.errors import ModelLoadError
from arriero.models.sources.repository import HubName, indexed_files, needed_files

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, CachedRevisionInfo

_MAIN = "main"


@dataclass(frozen=True, slots=True)
class CachedRepository:
    """A model repository of which something was fetched."""

    name: str
    size: int
    """Bytes on disk of all its revisions."""
    path: Path | None
    """The directory or GGUF file that its name alone means; None when that is not whole or not clear."""


def repositories() -> list[CachedRepository]:
    """Every model repository in the cache, by name."""
    return sorted(
        (CachedRepository(repo.repo_id, repo.size_on_disk, _path(HubName(repo.repo_id), repo)) for repo in _models()),
        key=lambda repository: repository.name.lower(),
    )


def damaged() -> list[Path]:
    """What in the cache is not as the library left it: directories of repositories, with what they hold."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        warnings = scan_cache_dir(constants.HF_HUB_CACHE).warnings
    except CacheNotFound:
        return []
    texts = [str(warning) for warning in warnings]

    def is_named(path: Path) -> bool:
        return any(f"{path}{end}" in text for text in texts for end in ("/", ")"))

    return sorted(filter(is_named, Path(constants.HF_HUB_CACHE).glob("models--*")))


def cached_path(name: HubName) -> Path | None:
    """The directory or GGUF file that `name` means, if it is there as a whole."""
    repo = _repository(name)
    return None if repo is None else _path(name, repo)


def cached_size(name: HubName) -> int:
    """Bytes that removing `name` would free: of its revision where it names one, else of them all."""
    repo = _repository(name)
    return 0 if repo is None else sum(file.stat().st_size for file in _blobs(_meant(name, repo)))


def remove(name: HubName) -> None:
    """Remove the revision that `name` names, or all of them; does nothing where there is none."""
    from huggingface_hub import constants, scan_cache_dir

    if (repo := _repository(name)) is not None:
        commits = [revision.commit_hash for revision in _meant(name, repo)]
        scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(*commits).execute()


def _models() -> list[CachedRepoInfo]:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return [repo for repo in scan_cache_dir(constants.HF_HUB_CACHE).repos if repo.repo_type == "model"]
    except CacheNotFound:
        return []


def _repository(name: HubName) -> CachedRepoInfo | None:
    return next((repo for repo in _models() if repo.repo_id.lower() == name.repository.lower()), None)


def _meant(name: HubName, repo: CachedRepoInfo) -> list[CachedRevisionInfo]:
    if name.revision is None:
        return list(repo.revisions)
    return [revision for revision in repo.revisions if name.revision in (revision.commit_hash, *revision.refs)]


def _blobs(revisions: list[CachedRevisionInfo]) -> set[Path]:
    return {file.blob_path for revision in revisions for file in revision.files}


def _path(name: HubName, repo: CachedRepoInfo) -> Path | None:
    wanted = name.revision or _MAIN
    for revision in repo.revisions:
        if wanted in (revision.commit_hash, *revision.refs):
            return _whole(name, revision.snapshot_path)
    return None


def _whole(name: HubName, directory: Path) -> Path | None:
    """What `name` means in the directory of a commit, unless something is missing there."""
    present = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    try:
        files = needed_files(name, present)
        for index in (file for file in files if file.endswith(".index.json")):
            if not indexed_files(directory / index, index) <= set(present):
                return None
    except ModelLoadError:
        return None
    return directory / files[0] if files[0].endswith(".gguf") else directory
