"""JSON files that come with a model, and their values with a complaint where one is not what it should be."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from arriero.errors import ModelLoadError, UnsupportedModel

_LARGEST = sys.float_info.max


@dataclass(frozen=True, slots=True)
class Settings:
    """What config.json says, type-checked as it is taken; None and absent are the same."""

    file: Path
    values: Mapping[str, Any]

    def integer(self, name: str, default: int | None = None) -> int:
        """The named integer; `ModelLoadError` when it is something else, or absent without a default."""
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) is not int:
            raise self.unexpected(name, "an integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """The named number as float."""
        value = self.values.get(name)
        value = default if value is None else value
        if not is_number(value):
            raise self.unexpected(name, "a number")
        return float(value)

    def boolean(self, name: str, default: bool = False) -> bool:
        """The named switch."""
        value = self.values.get(name)
        if value not in (None, False, True):
            raise self.unexpected(name, "true or false")
        return default if value is None else bool(value)

    def items(self, name: str) -> list[Any] | None:
        """The named list; None when absent."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, list):
            raise self.unexpected(name, "a list")
        return value

    def within(self, name: str) -> Settings:
        """The JSON object under a name, empty when absent."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.unexpected(name, "a JSON object")
        return Settings(self.file, value or {})

    def neutral(self, name: str, *allowed: Any) -> None:
        """Raise unless the named setting is absent or one of the values that change nothing."""
        value = self.values.get(name)
        if value is not None and value not in allowed:
            raise self.unsupported(name)

    def unexpected(self, name: str, expected: str) -> ModelLoadError:
        """The error for a setting of the wrong type."""
        return ModelLoadError(f"{self.file}: {name} is {brief(self.values.get(name))}, expected {expected}.")

    def unsupported(self, name: str) -> UnsupportedModel:
        """The error for a setting that is not computed."""
        return UnsupportedModel(
            f"{self.file}: {name} is {brief(self.values.get(name))}, which asks for something "
            "that Arriero does not compute."
        )


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file; raises `ModelLoadError` when it is missing or something else."""
    content = _parse(file)
    if not isinstance(content, dict):
        raise ModelLoadError(f"{file}: holds {type(content).__name__}, expected a JSON object.")
    return content


def read_json_list(file: Path) -> list[Any]:
    """The JSON array in a file; raises `ModelLoadError` when it is missing or something else."""
    content = _parse(file)
    if not isinstance(content, list):
        raise ModelLoadError(f"{file}: holds {type(content).__name__}, expected a JSON array.")
    return content


def _parse(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise ModelLoadError(f"{file}: cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{file}: is not valid JSON: {error}.") from error


def is_number(value: Any) -> TypeGuard[float]:
    """True for a finite number; booleans are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def brief(value: Any) -> str:
    """The value as a message can show it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
