"""Flags that are made from the declarations of the settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from arriero import config
from arriero.cli.completion import complete_choice, complete_config, complete_model
from arriero.config_description import choices, default, flag, group, kind, limits, variable

_METAVARS = {ByteSize: "SIZE", Path: "PATH", str: "TEXT"}


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes `**flags` one flag for every setting; those not given arrive as None.

    Parameters of its own come first, and stand for the settings of their names.
    All but switches are texts to typer: a value is checked in one place, wherever it was given.
    """
    declared = inspect.signature(command, eval_str=True).parameters.values()
    own = [each for each in declared if each.kind is not inspect.Parameter.VAR_KEYWORD]
    names = {each.name for each in own}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(name, field))
        for name, field in config.in_one_word().items()
        if name not in names
    ]
    command.__signature__ = inspect.Signature([*own, *parameters])  # type: ignore[attr-defined]
    return command


def _annotation(name: str, field: FieldInfo) -> Any:
    origin = f"{variable(name)}, default {default(field)}" if default(field) else variable(name)
    shown: dict[str, Any] = {
        "help": f"{field.description} [dim]({origin})[/dim]",
        "show_default": False,
        "autocompletion": _completing(name, field),
    }
    if kind(field) is bool:
        return Annotated[bool | None, typer.Option(flag(name), rich_help_panel=group(field), **shown)]
    if kind(field) is dict:
        shown["metavar"] = "NAME=ADAPTER"
        return Annotated[list[str] | None, typer.Option(flag(name), rich_help_panel=group(field), **shown)]
    shown["metavar"] = _metavar(field)
    if name == "model":
        return Annotated[str | None, typer.Argument(**shown | {"metavar": flag(name)})]
    return Annotated[str | None, typer.Option(flag(name), rich_help_panel=group(field), **shown)]


def _completing(name: str, field: FieldInfo) -> Callable[[str], list[str]] | None:
    """What offers values for a setting while it is typed; None leaves it to the shell, which knows files."""
    if name in ("model", "base_model"):
        return complete_model
    if name == "config":
        return complete_config
    return complete_choice(choices(field)) if choices(field) else None


def _metavar(field: FieldInfo) -> str:
    if bounds := limits(field):
        return f"{bounds[0]}-{bounds[1]}"
    return "|".join(choices(field)) or _METAVARS[kind(field)]
