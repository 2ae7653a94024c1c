"""The directory of downloaded and converted models, and what in it is not whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from arriero.cli.doctor.finding import Finding, command, fail, ok, warn
from arriero.cli.output import readable_size
from arriero.config import Settings
from arriero.config_description import variable

_LITTLE = 2 * 10**9
"""Bytes: a small model, converted."""


def check_cache(settings: Settings) -> Iterator[Finding]:
    """The cache can be written, and has room."""
    place = settings.cache
    elsewhere = f"export {variable('cache')}=/path/with/room"
    problem = why_not_writable(place)
    if problem:
        yield fail("cache", problem, elsewhere)
        return
    free = shutil.disk_usage(existing(place)).free
    if free < _LITTLE:
        yield warn("cache", f"{place} has only {readable_size(free)} left", elsewhere)
    else:
        yield ok("cache", f"{place} can be written, {readable_size(free)} are left")


def check_stored_models(settings: Settings) -> Iterator[Finding]:
    """What was downloaded and converted is whole; what is not is made anew when it is needed, and takes room now."""
    from arriero.models.cache import damaged_conversions
    from arriero.models.sources import hub_cache
    from arriero.models.sources.inventory import inventory

    stored = inventory(settings.cache)
    for model in stored:
        if model.origin == "catalog" and model.downloaded and model.path is None and _is_model(model.name, settings):
            again = f"{command('arriero', 'models', 'remove', model.name, '--yes')} && " + command(
                "arriero", "models", "pull", model.name
            )
            yield warn("models", f"{model.name} is not whole in {settings.cache}", again)
    for path in damaged_conversions(settings.cache):
        yield warn("models", f"{path} is a conversion that was damaged; it takes room", command("rm", "-r", path))
    for path in hub_cache.damaged():
        yield warn("models", f"{path} is damaged", command("rm", "-r", path))
    whole = [model for model in stored if model.path]
    names = ", ".join(model.name for model in whole)
    taken = sum(model.downloaded + model.converted for model in stored)
    yield ok("models", f"{len(whole)} are at hand{f' ({names})' if names else ''}, {readable_size(taken)}")


def existing(place: Path) -> Path:
    """The directory itself, or the nearest above it that there is."""
    return next(path for path in (place, *place.absolute().parents) if path.exists())


def why_not_writable(place: Path) -> str | None:
    """What keeps files from being written to a directory that may yet have to be made; None: nothing."""
    above = existing(place)
    if not above.is_dir():
        return f"{above} is no directory"
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        return f"{above} cannot be written: {error.strerror}"
    return None


def _is_model(name: str, settings: Settings) -> bool:
    """Whether more than locks is left of a download."""
    directory = settings.cache / "models" / name
    return any(os.path.getsize(path) for path in directory.rglob("*") if path.is_file())
