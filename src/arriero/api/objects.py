"""Objects of a request's JSON, and the marks that tell which of their fields are not honoured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


@dataclass(frozen=True, slots=True)
class Refused:
    """Marks a parameter that is known and not implemented: anything but null and the neutral values is an error."""

    neutral: tuple[Any, ...] = ()
    """Values that ask for nothing, so that passing them on has no meaning."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Marks a parameter that changes no answer here: tolerated, and reported unless it is null or neutral."""

    neutral: tuple[Any, ...] = ()
    """Values that are not worth a report, because they ask for what happens anyway."""


def refused(*neutral: Any) -> Refused:
    """A mark for a parameter that is refused unless it is null or one of `neutral`."""
    return Refused(neutral)


def ignored(*neutral: Any) -> Ignored:
    """A mark for a parameter that has no effect, and is reported unless it is null or one of `neutral`."""
    return Ignored(neutral)


@cache
def marks(model: type[BaseModel]) -> dict[str, Refused | Ignored]:
    """The fields of `model` that are marked, with their marks."""
    return {
        name: mark
        for name, field in model.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Refused | Ignored)
    }


def _describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Tell of marks and of defaults that are made by factories, both of which pydantic leaves out."""
    for name, field in model.model_fields.items():
        if field.default_factory is not None:
            schema["properties"][name]["default"] = field.get_default(call_default_factory=True)
    for name, mark in marks(model).items():
        schema["properties"][name]["description"] += " " + effect(mark)


def effect(mark: Refused | Ignored) -> str:
    """What becomes of a marked parameter, in a sentence."""
    values = ", ".join(json.dumps(value) for value in (None, *mark.neutral))
    if isinstance(mark, Ignored):
        return f"No effect, and x-arriero-ignored says so unless it is {values}."
    return f"Refused unless it is {values}."


class JSONObject(BaseModel):
    """An object of a request: strict about types, null is absence, unknown keys are kept to be reported."""

    model_config = ConfigDict(
        strict=True,
        extra="allow",
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra=_describe,
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict) or None not in value.values():
            return value
        return {key: each for key, each in value.items() if each is not None}
