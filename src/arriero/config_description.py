"""What a setting is called, and what its value may be, in words: all of it follows from its declaration in `config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ByteSize
from pydantic.fields import FieldInfo

PREFIX = "ARRIERO_"
LANGPORT = "completion_max_"
"""Settings that begin with this keep the names that LangPort documents: their variables have no prefix."""


def flag(name: str) -> str:
    """A setting's name on the command line."""
    return "MODEL" if name == "model" else "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """A setting's name in the environment."""
    return name.upper() if name.startswith(LANGPORT) else PREFIX + name.upper()


def group(field: FieldInfo) -> str:
    """The heading under which help lists a setting."""
    assert isinstance(field.json_schema_extra, dict)
    return str(field.json_schema_extra["group"])


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The values that a setting can have, empty when they are not a short list."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def kind(field: FieldInfo) -> type:
    """A setting's type without its `| None` and its annotations; `str` for one with choices."""
    annotation: Any = field.annotation
    if get_origin(annotation) is dict:
        return dict
    while not isinstance(annotation, type):
        annotation = str if get_origin(annotation) is Literal else get_args(annotation)[0]
    return annotation


def limits(field: FieldInfo) -> tuple[int, int] | None:
    """The least and the largest value of a setting that is a number."""
    if kind(field) not in (int, float):
        return None
    low, high = (getattr(rule, name) for name in ("ge", "le") for rule in field.metadata if hasattr(rule, name))
    return low, high


def expected(field: FieldInfo) -> str:
    """What a setting's value has to be, in words."""
    if kind(field) is bool:
        return "true or false"
    if options := choices(field):
        return "one of " + ", ".join(options)
    if bounds := limits(field):
        noun = "a whole number" if kind(field) is int else "a number"
        return f"{noun} from {bounds[0]} to {bounds[1]}"
    if field.examples:
        return ("pairs" if kind(field) is dict else "a text") + " such as " + " or ".join(field.examples)
    return {
        ByteSize: "a size such as 16MiB, at least 1KiB",
        Path: "a path",
        str: "a text that is not empty, of printable characters",
    }[kind(field)]


def default(field: FieldInfo) -> str:
    """A setting's default as one would write it, empty when left out means something of its own."""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, ByteSize):
        return value.human_readable().replace(".0", "")
    if isinstance(value, Path) and value.is_relative_to(Path.home()):
        return f"~/{value.relative_to(Path.home()).as_posix()}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None or value == {} else str(value)
