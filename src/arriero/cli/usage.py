"""`arriero usage`: what was used, by day, key, model and endpoint."""

from __future__ import annotations

import csv
import sys
from contextlib import closing
from dataclasses import astuple
from datetime import date
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from arriero.cli.options import Store, open_store
from arriero.cli.output import print_json, print_table
from arriero.errors import ConfigError

if TYPE_CHECKING:
    from arriero.store.usage import Amounts, Place

_HEADS = ("Day", "Key", "Model", "Endpoint", "Requests", "Errors", "Prompt", "Cached", "Completion", "Seconds")


def usage(
    key: Annotated[str | None, typer.Option(help="Id or name of a key.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of a model.")] = None,
    since: Annotated[str | None, typer.Option(metavar="DAY", help="First day (UTC), such as 2026-05-01.")] = None,
    until: Annotated[str | None, typer.Option(metavar="DAY", help="Last day (UTC).")] = None,
    form: Annotated[Literal["table", "csv", "json"], typer.Option("--format", help="How to print it.")] = "table",
    store: Store = None,
) -> None:
    """Show what was used: requests, tokens and seconds, by day, key, model and endpoint."""
    from arriero.store.keys import every, find
    from arriero.store.usage import NAMES, Place, query

    first, last = _day(since, "--since"), _day(until, "--until")
    with closing(open_store(store)) as connection:
        names = {each.id: each.name for each in every(connection)}
        wanted = key if key is None or key == "static" else find(connection, key).id
        rows = query(connection, key=wanted, model=model, since=first, until=last)
    if form == "json":
        print_json([_record(place, amounts) for place, amounts in rows])
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, [*Place._fields, *NAMES, "total_tokens"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(_record(place, amounts) for place, amounts in rows)
    else:
        _print_rows(rows, names)


def _record(place: Place, amounts: Amounts) -> dict[str, object]:
    from arriero.store.usage import NAMES

    values = dict(zip(NAMES, astuple(amounts), strict=True))
    return {
        **place._asdict(),
        **values,
        "seconds": round(amounts.seconds, 3),
        "total_tokens": amounts.tokens,
    }


def _print_rows(rows: list[tuple[Place, Amounts]], names: dict[str, str]) -> None:
    from arriero.store.ledger import totals

    shown = [
        (
            place.day,
            names.get(place.key, place.key or "-"),
            place.model or "-",
            place.endpoint or "-",
            *_counts(amounts),
        )
        for place, amounts in rows
    ]
    print_table(_HEADS, [*shown, ("Total", "", "", "", *_counts(totals(rows)))], first_number=4)


def _counts(amounts: Amounts) -> tuple[str, ...]:
    *whole, seconds = astuple(amounts)
    return (*(f"{value:,}" for value in whole), f"{seconds:,.1f}")


def _day(text: str | None, flag: str) -> str | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ConfigError(f"{flag} is {text!r}, expected a day such as 2026-05-31") from None
