"""What was configured: whether it can be read, fits together, and names files that are there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arriero import config
from arriero.cli.doctor.finding import Finding, command, fail, ok, warn
from arriero.config_description import LANGPORT, PREFIX, flag, variable
from arriero.config_sources import load
from arriero.errors import ConfigError

_FILES = ("script", "tokenizer_path", "tls_certificate", "tls_key")
"""Settings of which others can only be told once they are there."""
_VARIABLE = re.compile(rf"((?:{PREFIX}|{LANGPORT.upper()})\w+) (?:is|in the environment)\b")


def read_settings(flags: Mapping[str, Any]) -> tuple[config.Settings | None, Finding]:
    """The settings that a server would have that is started with these flags; None where they cannot be read."""
    try:
        settings = load(flags)
    except ConfigError as error:
        return None, fail("config", str(error), _mend(str(error), flags))
    variables = [variable(name) for name in config.in_one_word() if os.environ.get(variable(name))]
    file = f"{settings.config} can be read" if settings.config else "there is no file"
    return settings, ok("config", f"{file}; in the environment: {', '.join(variables) or 'nothing'}")


def check_settings(settings: config.Settings) -> Iterator[Finding]:
    """The settings fit together, and so do the tables of models."""
    from arriero.app.upstreams import open_upstreams
    from arriero.model_tables import model_tables

    edit = _edit(settings.config)
    try:
        tables = model_tables(settings)
        upstreams = open_upstreams(settings)
        for each in (settings, *(table.settings for table in tables)):
            each.in_plain_words()
    except ConfigError as error:
        unset = re.search(r"environment variable (\w+) holds no key", str(error))
        yield fail("settings", str(error), f"export {unset[1]}=..." if unset else edit)
        return
    for each in (settings, *(table.settings for table in tables)):
        yield from _check_files(each, edit)
    if tables or upstreams:
        yield ok("settings", f"{len(tables)} models of this server's own, {len(upstreams)} of other servers")


def check_secrets(settings: config.Settings) -> Iterator[Finding]:
    """A file that holds keys can be read by its owner alone."""
    file = settings.config
    if file is None or os.name != "posix":
        return
    written = "api_key" in file.read_text("utf-8") or any("key" in table for table in settings.models)
    if written and file.stat().st_mode & 0o077:
        yield warn("secrets", f"{file} holds a key, and others may read it", command("chmod", "600", file))


def _check_files(settings: config.Settings, edit: str | None) -> Iterator[Finding]:
    for name in _FILES:
        path = getattr(settings, name)
        if path is None or (path.exists() and os.access(path, os.R_OK)):
            continue
        what = "cannot be read" if path.exists() else "is not there"
        yield fail("settings", f"{flag(name)} is {path}, which {what}", edit)


def _mend(message: str, flags: Mapping[str, Any]) -> str | None:
    if (found := _VARIABLE.match(message)) is not None:
        return f"unset {found[1]}"
    return _edit(Path(flags["config"])) if "config" in flags else None


def _edit(file: Path | None) -> str | None:
    return None if file is None else f"${{EDITOR:-vi}} {command(file)}"
