"""`arriero models`: what is at hand, and fetching, removing and looking at it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arriero import config, config_sources
from arriero.cli.completion import complete_model
from arriero.cli.options import Json
from arriero.cli.output import print_json, print_table, readable_size
from arriero.config_description import variable

if TYPE_CHECKING:
    from arriero.models.sources.inventory import Stored

models = typer.Typer(
    name="models",
    no_args_is_help=True,
    help="List, fetch, remove and look at models.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Catalog name, hub id (org/name, org/name@revision) or path.",
        autocompletion=complete_model,
    ),
]
Cache = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="PATH",
        help=f"{config.Settings.model_fields['cache'].description} [dim]({variable('cache')})[/dim]",
    ),
]


@models.command("list")
def show_all(as_json: Json = False, cache: Cache = None) -> None:
    """List the catalog, and what is in the caches: Arriero's own, and the one of the Hugging Face hub."""
    from arriero.models.sources.inventory import inventory, others

    place = _cache(cache)
    stored = inventory(place)
    if as_json:
        print_json([_row(model) for model in stored])
        return
    print_table(
        ("Model", "From", "Downloaded", "Converted"),
        [(model.name, model.origin, _downloaded(model), readable_size(model.converted)) for model in stored],
        first_number=2,
    )
    if rest := others(stored, place):
        print(
            f"{readable_size(rest)} more are converted of paths, or by other versions; "
            "the oldest go when it grows too much."
        )


@models.command()
def pull(model: Name, as_json: Json = False, cache: Cache = None) -> None:
    """Download a model of the catalog or of the Hugging Face hub, so that serving it needs no network."""
    from arriero.cli import log
    from arriero.cli.progress import Bars
    from arriero.models.sources.resolve import resolve

    log.set_up("info")
    with Bars() as bars:
        resolved = resolve(model, _cache(cache), bars.download)
    if as_json:
        print_json({"name": resolved.name, "path": str(resolved.path)})
    else:
        print(f"{resolved.name} is at {resolved.path}")


@models.command()
def remove(
    model: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
    cache: Cache = None,
) -> None:
    """Remove what was downloaded and converted of a model. Files of your own are never removed."""
    from arriero.errors import ConfigError
    from arriero.models.sources import inventory

    place = _cache(cache)
    stored = inventory.find(model, place)
    size = stored.downloaded + stored.converted
    if size and not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"removing {model} takes a yes: nobody is there to be asked, so give --yes")
        typer.confirm(f"Remove {readable_size(size)} of {stored.name}?", abort=True, err=True)
    freed = inventory.remove(stored, place) if size else 0
    if as_json:
        print_json({"name": stored.name, "bytes": freed})
    else:
        print(
            f"Removed {readable_size(freed)} of {stored.name}"
            if freed
            else f"Nothing of {stored.name} is in the caches"
        )


@models.command()
def show(model: Name, as_json: Json = False, cache: Cache = None) -> None:
    """Tell what a model is, which engine would run it and why, and about how much memory it takes."""
    from arriero.models.sources.inventory import find

    stored = find(model, _cache(cache))
    facts = _row(stored) | (_facts(stored.path) if stored.path else {})
    if as_json:
        print_json(facts)
        return
    rows = [(name.replace("_", " "), _shown(name, value)) for name, value in facts.items() if value is not None]
    if stored.path is None:
        rows.append(("", f"More is known once it is downloaded: arriero models pull {model}"))
    print_table(None, rows)


def _cache(given: str | None) -> Path:
    return config_sources.load({} if given is None else {"cache": given}).cache


def _row(model: Stored) -> dict[str, Any]:
    return {
        "name": model.name,
        "origin": model.origin,
        "path": str(model.path) if model.path else None,
        "downloaded_bytes": model.downloaded,
        "converted_bytes": model.converted,
    }


def _facts(path: Path) -> dict[str, Any]:
    from arriero.models.decoders.description import BYTES_PER_WEIGHT, describe

    known = describe(path)
    engine, reason = _choice(path)
    writes = engine in ("native", "onnx") and "completion" in known.tasks
    forms = {form: size for form, size in BYTES_PER_WEIGHT.items() if writes or form != "int4"}
    weights = known.parameters and {form: round(known.parameters * size) for form, size in forms.items()}
    return {
        "family": known.family,
        "parameters": known.parameters,
        "context": known.context,
        "vocab_size": known.vocab_size,
        "source_format": known.source_format,
        "tasks": list(known.tasks),
        "chat_template": known.has_chat_template,
        "engine": engine,
        "reason": reason,
        "memory_weights": weights,
        "memory_per_token": known.bytes_per_token,
    }


def _choice(path: Path) -> tuple[str | None, str]:
    """The engine that `serve` would take, none where none can, and why."""
    from arriero.app.engines import choose_engine
    from arriero.errors import UnsupportedModel

    try:
        choice = choose_engine(path)
    except UnsupportedModel as error:
        return None, str(error)
    return choice.engine, choice.reason


def _downloaded(model: Stored) -> str:
    if model.path is not None or not model.downloaded:
        return readable_size(model.downloaded)
    return f"part, {readable_size(model.downloaded)}"


def _shown(name: str, value: Any) -> str:
    if name == "memory_weights":
        return ", ".join(f"{readable_size(size)} as {form}" for form, size in value.items())
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes") or name.startswith("memory"):
        return readable_size(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
