"""Brings what serving needs of a Hugging Face repository into the hub's own cache, which other programs share.

The library's variables count: `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
"""

from __future__ import annotations

import errno
import glob
import logging
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arriero.errors import ModelLoadError
from arriero.models.sources.download import Progress
from arriero.models.sources.repository import HubName, indexed_files, needed_files

if TYPE_CHECKING:
    from huggingface_hub import ResolvedRevision

_LIBRARY = "arriero"


def fetch(name: HubName, progress: Progress | None = None, *, code: bool = False) -> Path:
    """The directory or GGUF file that `name` means in the hub's cache, with what is missing there downloaded.

    The hub is asked which commit is meant; where it cannot be reached, the commit that was fetched last is taken.
    Files that are whole in the cache are not fetched again, and a connection that breaks is taken up where it broke.
    `code` brings the repository's Python files as well; nothing here runs them.

    Raises:
        ModelLoadError: the repository, its revision or a file in it is not there or not open to this user, nothing
            is cached and the hub cannot be reached, or the disk is full.
        UnsupportedModel: it has no weights in a form that is read.
    """
    with _explaining(name):
        revision = _resolve(name)
        sizes = _listing(name.repository, revision)
        watch = _Watch(progress)
        files = _needed(name, revision, sizes, watch, code=code)
        watch.total = sum(sizes[file] for file in files if not _is_cached(name.repository, revision, file))
        directory = _download(name.repository, revision, files, watch)
    return directory / files[0] if files[0].endswith(".gguf") else directory


def size(name: HubName) -> int:
    """Bytes of what `fetch` would bring; nothing is downloaded but an index. Raises as `fetch`."""
    with _explaining(name):
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        revision = _resolve(name)
        sizes = _listing(name.repository, revision)
        files = _needed(name, revision, sizes, _Watch(None))
        missing = [file for file in files if not _is_cached(name.repository, revision, file)]
        if missing:  # Everybody may see the list of files of a gated repository.
            get_hf_file_metadata(hf_hub_url(name.repository, missing[0], revision=revision.resolved))
    return sum(sizes[file] for file in missing)


@contextmanager
def _explaining(name: HubName) -> Iterator[None]:
    """Tell what goes wrong inside as `ModelLoadError`."""
    # The library takes half a second to import, and only names of this form need it.
    from httpx2 import HTTPError
    from huggingface_hub.errors import HFValidationError, RevisionResolutionError

    try:
        yield
    except (HTTPError, HFValidationError, RevisionResolutionError, OSError) as error:
        raise _explained(name, error) from error


def _resolve(name: HubName) -> ResolvedRevision:
    """The commit that `name` means."""
    from huggingface_hub import HfApi, is_offline_mode

    logging.getLogger("huggingface_hub").handlers.clear()  # whoever set up logging shows its lines already
    return HfApi(library_name=_LIBRARY).resolve_revision(
        name.repository, revision=name.revision, local_files_only=is_offline_mode()
    )


def _needed(
    name: HubName, revision: ResolvedRevision, sizes: Mapping[str, int], watch: _Watch, *, code: bool = False
) -> list[str]:
    """The files that `name` means; an index says which weights there are, so it is fetched."""
    files = needed_files(name, sizes, code=code)
    for index in [file for file in files if file.endswith(".index.json")]:
        file = _download(name.repository, revision, [index], watch) / index
        named = indexed_files(file, index)
        if missing := sorted(named - sizes.keys()):
            raise ModelLoadError(f"{file}: names {missing[0]}, which is not in the repository.")
        files += sorted(named)
    return files


def _listing(repository: str, revision: ResolvedRevision) -> Mapping[str, int]:
    """Sizes of all the repository's files by their path; known for good once a commit has been fetched."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        files = get_cached_repo_tree(repository, revision=revision)
    except CachedRepoTreeNotFoundError:
        try:
            tree = HfApi(library_name=_LIBRARY).list_repo_tree(repository, recursive=True, revision=revision.resolved)
            files = [entry for entry in tree if isinstance(entry, RepoFile)]
        except (HTTPError, OSError) as error:
            # Older versions of the library did not keep the listing: take what they fetched for all there is.
            try:
                directory = Path(snapshot_download(repository, revision=revision, local_files_only=True))
            except LocalEntryNotFoundError:
                raise error from None
            found = (path for path in directory.rglob("*") if path.is_file())
            return {path.relative_to(directory).as_posix(): path.stat().st_size for path in found}
    return {file.path: file.size for file in files}


def _is_cached(repository: str, revision: ResolvedRevision, file: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, file, revision=revision), str)


class _Watch:
    """Adds up what arrives, from however many threads, and stops them all when the caller has gone."""

    total = 0
    stopped = False

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done = 0
        self._lock = threading.Lock()

    def advance(self, num_bytes: int) -> None:
        if self.stopped:
            raise ConnectionAbortedError("stopped")
        with self._lock:
            self._done = min(self._done + num_bytes, self.total)
            if self._progress and self.total:
                self._progress(self._done, self.total)


def _bar(watch: _Watch) -> type[Any]:
    """A class for the library to make its bars of; they tell `watch` and show nothing themselves."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]  # it has no types
        def __init__(self, *arguments: Any, **options: Any) -> None:
            # One bar counts files, one what comes over the wire, one what is written: the last is what is wanted.
            counts_bytes = options.get("unit") == "B"
            self._is_written = counts_bytes and not str(options.get("desc", "")).startswith("Downloading")
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self._is_written:
                watch.advance(int(n or 0))

    return Bar


def _download(repository: str, revision: ResolvedRevision, files: list[str], watch: _Watch) -> Path:
    """The commit's directory in the cache, with these files in it."""
    from huggingface_hub import snapshot_download

    # In a thread of its own, since an interrupt here would otherwise wait until all files have arrived.
    with ThreadPoolExecutor(1) as executor:
        task = executor.submit(
            lambda: snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[glob.escape(file) for file in files],
                tqdm_class=_bar(watch),
                library_name=_LIBRARY,
            )
        )
        try:
            return Path(task.result())
        finally:
            watch.stopped = not task.done()


def _explained(name: HubName, error: Exception) -> ModelLoadError:
    """What went wrong in one sentence, and what to do about it."""
    from huggingface_hub import constants, errors, get_token, is_offline_mode

    repository, hub = name.repository, constants.ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        login = "the token in use has no access" if get_token() else "log in with `hf auth login`, or set HF_TOKEN"
        return ModelLoadError(f"{repository} is gated: ask for access at {hub}/{repository}; then {login}.")
    if isinstance(error, errors.RepositoryNotFoundError):
        private = "" if get_token() else "; if it is private, log in with `hf auth login`, or set HF_TOKEN"
        return ModelLoadError(f"There is no {repository} at {hub}, nor a file or directory of that name here{private}.")
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelLoadError(f"{repository} has no revision '{name.revision}'.")
    if isinstance(error, errors.HFValidationError):
        return ModelLoadError(f"'{repository}' cannot be the name of a repository: {_first_line(error)}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return ModelLoadError(
            f"{error.filename or constants.HF_HUB_CACHE}: cannot be written: {error.strerror}. "
            "Make room or give access there, or choose another cache directory with HF_HUB_CACHE."
        )
    if is_offline_mode():
        return ModelLoadError(
            f"{repository} is not whole in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch it."
        )
    return ModelLoadError(
        f"{repository} cannot be fetched from {hub}: {_reason(error)} Check the network, or HF_ENDPOINT and HF_TOKEN."
    )


def _reason(error: BaseException) -> str:
    """The first line of what is at the bottom of an error, or the status of the hub's answer."""
    from huggingface_hub.errors import HfHubHTTPError

    while error.__cause__ is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        said = f" ({error.server_message})" if error.server_message else ""
        return f"the answer was {error.response.status_code} {error.response.reason_phrase}{said}."
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return line if line.endswith(".") else f"{line}."
