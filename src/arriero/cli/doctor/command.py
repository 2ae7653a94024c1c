"""`arriero doctor`: the command, and the order of its checks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arriero.cli.completion import complete_model
from arriero.cli.options import Json, ModelOption, one_model
from arriero.cli.output import harmless, print_json
from arriero.config_description import variable

if TYPE_CHECKING:
    from arriero.cli.doctor.finding import Finding

_OF_INSTALLATION = (
    ("python", "installation.check_python"),
    ("packages", "installation.check_packages"),
    ("libraries", "installation.check_libraries"),
    ("processor", "installation.check_processor"),
)
_OF_SETTINGS = (
    ("settings", "configuration.check_settings"),
    ("secrets", "configuration.check_secrets"),
    ("cache", "caches.check_cache"),
    ("models", "caches.check_stored_models"),
    ("model", "models.check_models"),
    ("port", "address.check_address"),
    ("files", "address.check_open_files"),
    ("store", "store.check_store"),
)
"""Checks by what they look at, in the order in which one would mend things."""
_MARKS = {"ok": "[green]ok  [/green]", "warn": "[yellow]warn[/yellow]", "fail": "[red]fail[/red]"}


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Model that is to be served: name, hub id or path; with --url one that the server has.",
            autocompletion=complete_model,
        ),
    ] = None,
    model_option: ModelOption = None,
    url: Annotated[str | None, typer.Option(help="A server that runs, to be looked at as well.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar=variable("api_key"), help="Key for that server.", show_default=False),
    ] = None,
    as_json: Json = False,
    **flags: str | bool | list[str] | None,
) -> None:
    """Find what is wrong with an installation, a model, a port or a configuration, and say what mends it.

    Looks at what `arriero serve` with the same flags, variables and file would find, and changes nothing.

    Exit status 1 when something has to be mended.
    """
    given = {"model": one_model(model, model_option), **flags}
    findings = []
    for finding in _findings({name: value for name, value in given.items() if value not in (None, [])}, url, api_key):
        findings.append(finding)
        if not as_json:
            _show(finding)
    counts = {status: sum(each.status == status for each in findings) for status in _MARKS}
    if as_json:
        rows = [
            {"check": each.check, "status": each.status, "found": each.found, "mend": each.mend} for each in findings
        ]
        print_json({"status": "fail" if counts["fail"] else "ok", "findings": rows})
    else:
        print(f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} to mend")
    if counts["fail"]:
        raise typer.Exit(1)


def _findings(flags: dict[str, Any], url: str | None, key: str | None) -> Iterator[Finding]:
    for name, function in _OF_INSTALLATION:
        yield from _guarded(name, function)
    from arriero.cli.doctor.configuration import read_settings

    asked = flags if url is None else {name: value for name, value in flags.items() if name != "model"}
    settings, found = read_settings(asked)
    yield found
    for name, function in _OF_SETTINGS if settings else ():
        yield from _guarded(name, function, settings)
    if url is not None:
        yield from _guarded("server", "running.check_server", url, key, flags.get("model"))


def _guarded(name: str, function: str, *arguments: object) -> Iterator[Finding]:
    """What a check finds; it is imported in its turn, for one that cannot be is a finding as well."""
    from arriero.cli.doctor.finding import fail

    module, _, check = function.partition(".")
    try:
        yield from getattr(importlib.import_module(f"arriero.cli.doctor.{module}"), check)(*arguments)
    except Exception as error:  # A diagnosis goes on, whatever is broken.
        yield fail(name, f"this cannot be looked at: {type(error).__name__}: {error}")


def _show(finding: Finding) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    console.print(_MARKS[finding.status], Text(f"{finding.check:<10} {harmless(finding.found)}"))
    if finding.mend and finding.status != "ok":
        console.print(Text(f"     {'':<10} {finding.mend}", style="bold"))
