"""Settings as they were given: flags over `ARRIERO_*` variables over one TOML file over defaults, read once."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from arriero.config import TABLES, Settings, in_one_word
from arriero.config_description import LANGPORT, PREFIX, choices, expected, flag, variable
from arriero.errors import ConfigError


def load(flags: Mapping[str, object], environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from everything that was given; `flags` go by field names, without those that were left out.

    A variable that is set to nothing counts as not set.
    Raises `ConfigError` naming every setting that is unknown or has an impossible value, where it was
    given, and what was expected.
    """
    variables = _from_environment(environment)
    arguments = {name: _Given(value, flag(name)) for name, value in flags.items()}
    file = (variables | arguments).get("config")
    given = (_from_file(Path(str(file.value)).expanduser()) if file else {}) | variables | arguments
    try:
        return Settings(**{name: each.value for name, each in given.items()})
    except ValidationError as error:
        wrong = dict.fromkeys(str(detail["loc"][0]) for detail in error.errors())
        raise ConfigError("; ".join(complaint(name, given[name].value, given[name].source) for name in wrong)) from None


@dataclass(frozen=True, slots=True)
class _Given:
    value: Any
    source: str


def complaint(name: str, value: object, source: str) -> str:
    """What is wrong with the value that was given for a setting at `source`."""
    if name in TABLES:
        return f"{source} is no list of tables: write [[{name}]] before each"
    field = Settings.model_fields[name]
    hint = suggestion(str(value), choices(field))
    if name == "api_key":  # a secret, even when it is none
        return f"{source} is not a text of 1 to 256 printable characters without spaces around it"
    return f"{source} is {value!r}, expected {expected(field)}{hint}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """A question that names the known word nearest to a mistyped one, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _from_environment(environment: Mapping[str, str]) -> dict[str, _Given]:
    names = {variable(name): name for name in in_one_word()}
    given = {}
    for key, value in environment.items():
        if not key.startswith((PREFIX, LANGPORT.upper())) or not value:
            continue
        if key not in names:
            raise ConfigError(f"{key} in the environment is no setting{suggestion(key, names)}")
        given[names[key]] = _Given(value, key)
    return given


def _from_file(path: Path) -> dict[str, _Given]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {path} is not TOML: {error}") from None
    names = Settings.model_fields.keys() - {"config"}
    for key in table.keys() - names:
        raise ConfigError(f"'{key}' in {path} is no setting{suggestion(key.replace('-', '_'), names)}")
    return {name: _Given(value, f"'{name}' in {path}") for name, value in table.items()}
