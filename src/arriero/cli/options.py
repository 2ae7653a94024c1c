"""Options that several commands have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from arriero import config, config_sources
from arriero.config_description import variable
from arriero.errors import StoreError

if TYPE_CHECKING:
    import sqlite3

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


def open_store(store: str | None, *, create: bool = False) -> sqlite3.Connection:
    """The store that is meant; raises `StoreError` where there is none yet and none is to be made."""
    from arriero.store.database import open_database

    path = config_sources.load({} if store is None else {"store": store}).store
    if not create and not path.exists():
        raise StoreError(f"there is no store {path}: it is made with the first key, or with the first use of a server")
    return open_database(path)
