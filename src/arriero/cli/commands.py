"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from arriero import __version__
from arriero.cli.bench import bench
from arriero.cli.chat.command import chat
from arriero.cli.completion import completion
from arriero.cli.doctor.command import doctor
from arriero.cli.keys import keys
from arriero.cli.models import models
from arriero.cli.serve import serve
from arriero.cli.settings import with_settings
from arriero.cli.usage import usage

app = typer.Typer(
    name="arriero",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    # Underscores in the names of flags do as well: other servers have them, and their start scripts go on working.
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)
app.command()(with_settings(serve))
app.command()(chat)
app.command()(bench)
app.command()(with_settings(doctor))
app.add_typer(models)
app.add_typer(keys)
app.command()(usage)
app.command()(completion)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"arriero {__version__}")
        raise typer.Exit


@app.callback()
def arriero(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """One command turns a language model into an OpenAI-compatible server."""
