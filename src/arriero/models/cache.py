"""Converted graphs on disk: built once, found again at the next start, pruned when they grow too many.

<cache>/converted/<key>/                   a finished conversion, with `conversion.json` about itself
<cache>/converted/<key>.partial-<random>/  one being built
<cache>/converted/<key>.lock               held while it is built, taken into use or removed
<cache>/converted/<key>.<pid>.use          held by a process that uses it, until the process ends
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

import arriero
from arriero.models.sources.storage import PARTIAL, make_durable, workspace

FORMAT_VERSION = 8
"""Raise when conversions of the same version of Arriero stop being interchangeable."""
DEFAULT_LIMIT = 20_000_000_000
_ABOUT = "conversion.json"
_in_use: dict[Path, FileLock] = {}


def converted(
    cache: Path, key_parts: Mapping[str, str], build: Callable[[Path], None], limit: int = DEFAULT_LIMIT
) -> Path:
    """The directory of the conversion with this key, built by `build(empty directory)` if there is none.

    `key_parts` is all that the result depends on (checkpoint identity, options); Arriero's version and
    `FORMAT_VERSION` are added. The directory counts as in use until the process ends. Conversions beyond
    `limit` bytes in all are removed, longest unused first, but none in use.

    Raises:
        ModelLoadError: the cache cannot be written, or whatever `build` raises.
    """
    parts = {**key_parts, "arriero": arriero.__version__, "format": str(FORMAT_VERSION)}
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    directory = cache / "converted"
    target = directory / key
    with workspace(directory, key) as temporary:
        if not _is_whole(target):
            if target.exists():
                os.replace(target, temporary / "damaged")
            fresh = temporary / "fresh"
            fresh.mkdir()
            build(fresh)
            _describe(fresh, parts)
            make_durable(fresh)
            os.replace(fresh, target)
        _take_into_use(target)
    with suppress(FileNotFoundError):  # another process may prune at the same time
        _prune(directory, limit)
    return target


@dataclass(frozen=True, slots=True)
class Conversion:
    """A finished conversion in the cache."""

    path: Path
    checkpoint: str
    """Identity of what it was made from."""
    size: int
    """Bytes."""


def conversions(cache: Path) -> list[Conversion]:
    """All finished conversions."""
    found = []
    for about in sorted((cache / "converted").glob(f"*/{_ABOUT}")):
        with suppress(OSError, ValueError, KeyError, TypeError):  # not whole: it will be built anew or pruned
            content = json.loads(about.read_bytes())
            size = sum(content["files"].values())
            if PARTIAL not in about.parent.name:
                found.append(Conversion(about.parent, str(content["made_from"]["checkpoint"]), size))
    return found


def damaged_conversions(cache: Path) -> list[Path]:
    """Directories of conversions that were finished once and lack something now."""
    found = (path for path in (cache / "converted").glob("*/") if PARTIAL not in path.name)
    return sorted(path for path in found if not _is_whole(path))


def remove_conversion(conversion: Conversion) -> bool:
    """Remove it unless a process uses it; whether it is gone."""
    return _remove(conversion.path.parent, conversion.path.name, conversion.path)


def _describe(directory: Path, parts: Mapping[str, str]) -> None:
    about = {"made_from": parts, "files": _sizes(directory)}
    (directory / _ABOUT).write_text(json.dumps(about, indent=2))


def _sizes(directory: Path) -> dict[str, int]:
    files = (file for file in directory.rglob("*") if file.is_file() and file.name != _ABOUT)
    return {file.relative_to(directory).as_posix(): file.stat().st_size for file in files}


def _size(directory: Path) -> int:
    """Bytes that a conversion takes; a file that it shares with others counts in parts."""
    status = (file.stat() for file in directory.rglob("*") if file.is_file())
    return sum(each.st_size // each.st_nlink for each in status)


def _is_whole(directory: Path) -> bool:
    """Whether it was finished and nobody has removed or cut a file since."""
    try:
        listed: object = json.loads((directory / _ABOUT).read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return listed == _sizes(directory)


def _take_into_use(target: Path) -> None:
    """Mark as used now, and by this process; the caller holds the conversion's lock."""
    os.utime(target)
    if target not in _in_use:
        _is_used(target.parent, target.name)  # forgets those that are gone
        lock = FileLock(target.with_name(f"{target.name}.{os.getpid()}.use"))
        lock.acquire()
        _in_use[target] = lock


def _prune(directory: Path, limit: int) -> None:
    """Remove what killed processes left, then the conversions unused for longest while all are above `limit` bytes."""
    for leftover in directory.glob(f"*{PARTIAL}*"):
        _remove(directory, leftover.name.partition(PARTIAL)[0], leftover)
    conversions = [path for path in directory.iterdir() if path.is_dir() and PARTIAL not in path.name]
    sizes = {path: _size(path) for path in conversions}
    total = sum(sizes.values())
    for path in sorted(conversions, key=lambda path: path.stat().st_mtime_ns):
        if total > limit and _remove(directory, path.name, path):
            total -= sizes[path]


def _remove(directory: Path, key: str, path: Path) -> bool:
    """Remove a directory unless someone builds or uses the conversion `key`; whether it is gone."""
    try:
        with FileLock(directory / f"{key}.lock", timeout=0):
            if _is_used(directory, key):
                return False
            # Renamed first, so that a removal cut short leaves nothing that looks finished.
            doomed = directory / f"{key}{PARTIAL}removed"
            os.replace(path, doomed)
            shutil.rmtree(doomed)
            return True
    except (Timeout, OSError):  # someone else is at it, or it is gone already; it will be looked at again next time
        return False


def _is_used(directory: Path, key: str) -> bool:
    """Whether a process uses it; what ended ones left is removed. The caller holds the conversion's lock."""
    used = False
    for use in directory.glob(f"{key}.*.use"):
        try:
            with FileLock(use, timeout=0):
                pass
        except Timeout:
            used = True
        else:
            use.unlink(missing_ok=True)  # nobody can take it meanwhile: that needs the conversion's lock
    return used
