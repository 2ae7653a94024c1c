"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from arriero import config
from arriero.config_description import variable

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="The same as MODEL.")]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PATH",
        help=f"{config.Settings.model_fields['store'].description} [dim]({variable('store')})[/dim]",
    ),
]


def one_model(argument: str | None, option: str | None) -> str | None:
    """The model that a command was given, as a word or as an option; raises `typer.BadParameter` for both."""
    if argument and option:
        raise typer.BadParameter("give the model once, as MODEL or with --model")
    return argument or option
