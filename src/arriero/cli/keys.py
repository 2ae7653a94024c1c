"""`arriero keys`: who may use the server. The store is written directly; running servers notice within a second."""

from __future__ import annotations

import re
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arriero.cli.options import Json, Store, open_store
from arriero.cli.output import print_json, print_table
from arriero.errors import ConfigError

if TYPE_CHECKING:
    from arriero.store.keys import Key

keys = typer.Typer(
    name="keys",
    no_args_is_help=True,
    help="Make, list, change and revoke keys. With the first one, the server asks everybody for theirs.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Word = Annotated[str, typer.Argument(metavar="KEY", help="Id or name.")]
_MOST = 2**53
_UNITS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose it is; for tables, need not be unique.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Model that it may use, or pattern such as 'smol*'; may be given often.")
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(help="Endpoint that it may use, such as chat/completions or 'chat/*'; may be given often."),
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="Look after the server and see everybody's usage.")] = False,
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help="A day such as 2030-01-31, or a time from now: 12h, 30d, 8w.")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, max=_MOST, metavar="N", help="Requests in a minute.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, max=_MOST, metavar="N", help="Tokens, read and written, in a minute.")
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(min=1, max=_MOST, metavar="N", help="Requests at the same time.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TOKENS/day|month", help="Tokens, read and written, in a day or month (UTC).")
    ] = None,
    weight: Annotated[
        float, typer.Option(min=0.01, max=100, help="Share of a busy engine, in relation to other keys.")
    ] = 1.0,
    as_json: Json = False,
    store: Store = None,
) -> None:
    """Make a key and print it. It is shown this once: only its hash is stored."""
    from arriero.store.keys import insert, new_key

    for flag, patterns in (("--model", model), ("--endpoint", endpoint)):
        if not all(each.strip("/ ") for each in patterns or ()):
            raise ConfigError(f"{flag} is empty: leave it out for a key that may use all")
    tokens, period = _budget(budget)
    key, text = new_key(
        _name(name),
        expires=_expiry(expires),
        models=tuple(model or ("*",)),
        endpoints=tuple(each.strip("/").removeprefix("v1/") for each in endpoint or ("*",)),
        admin=admin,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrent=concurrent,
        budget=tokens,
        budget_period=period,
        weight=weight,
    )
    with closing(open_store(store, create=True)) as connection:
        insert(connection, key)
    _print_secret(key, text, as_json)


@keys.command("list")
def show_all(as_json: Json = False, store: Store = None) -> None:
    """List all keys, also those that expired or were revoked."""
    from arriero.store.keys import every

    with closing(open_store(store)) as connection:
        found = every(connection)
    if as_json:
        print_json([_facts(key) for key in found])
        return
    rows = [
        (key.id, key.name, _state(key), ", ".join(key.models), ", ".join(key.endpoints), _limits(key)) for key in found
    ]
    print_table(("Id", "Name", "State", "Models", "Endpoints", "Limits"), rows)


@keys.command()
def show(key: Word, as_json: Json = False, store: Store = None) -> None:
    """Tell about one key."""
    from arriero.store.keys import find

    with closing(open_store(store)) as connection:
        facts = _facts(find(connection, key))
    if as_json:
        print_json(facts)
        return
    rows = [(name.replace("_", " "), _shown(value)) for name, value in facts.items() if value is not None]
    print_table(None, rows)


@keys.command()
def revoke(key: Word, store: Store = None) -> None:
    """Have a key open nothing any more, for good. Its usage stays."""
    from arriero.store import keys as stored

    with closing(open_store(store)) as connection:
        revoked = stored.revoke(connection, stored.find(connection, key))
    print(f"Revoked {revoked.id} ({revoked.name})")


@keys.command()
def rotate(key: Word, as_json: Json = False, store: Store = None) -> None:
    """Replace a key's secret and print the new key; the old one opens nothing any more. Limits and usage stay."""
    from arriero.store import keys as stored

    with closing(open_store(store)) as connection:
        found = stored.find(connection, key)
        text = stored.rotate(connection, found)
    _print_secret(found, text, as_json)


def _print_secret(key: Key, text: str, as_json: bool) -> None:
    """The key alone on standard output, so that it can be piped to where it belongs."""
    if as_json:
        print_json({**_facts(key), "key": text})
        return
    print(f"The key of {key.name}. It is not shown again:", file=sys.stderr)
    print(text)


def _facts(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "state": _state(key),
        "created": _time(key.created),
        "expires": _time(key.expires),
        "revoked": _time(key.revoked),
        "models": list(key.models),
        "endpoints": list(key.endpoints),
        "admin": key.admin,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "concurrent": key.concurrent,
        "budget": None if key.budget is None else f"{key.budget}/{key.budget_period}",
        "weight": key.weight,
    }


def _state(key: Key) -> str:
    if key.revoked is not None:
        return "revoked"
    return "expired" if key.expires is not None and key.expires <= time.time() else "good"


def _limits(key: Key) -> str:
    """Everything that makes a key more or less than others, in a few words."""
    limits = {
        "requests/min": key.requests_per_minute,
        "tokens/min": key.tokens_per_minute,
        "at once": key.concurrent,
        f"tokens/{key.budget_period}": key.budget,
    }
    words = [f"{value:,} {name}" for name, value in limits.items() if value is not None]
    if key.weight != 1:
        words.append(f"weight {key.weight:g}")
    if key.expires is not None:
        words.append(f"until {(_time(key.expires) or '')[:10]}")
    return ", ".join(["admin", *words] if key.admin else words)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _time(seconds: int | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _name(text: str) -> str:
    from arriero.store.keys import LONGEST_NAME

    if not text.strip() or len(text) > LONGEST_NAME or not text.isprintable():
        raise ConfigError(f"a key's name is a text of 1 to {LONGEST_NAME} printable characters")
    return text


def _budget(text: str | None) -> tuple[int | None, str]:
    if text is None:
        return None, "month"
    found = re.fullmatch(r"(\d{1,16})/(day|month)", text)
    if found is None:
        raise ConfigError(f"--budget is {text!r}, expected tokens in a day or month such as 1000000/day")
    return int(found[1]), found[2]


def _expiry(text: str | None) -> int | None:
    if text is None:
        return None
    if found := re.fullmatch(r"(\d{1,4})([hdw])", text):
        return int(time.time()) + int(found[1]) * _UNITS[found[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--expires is {text!r}, expected a day such as 2030-01-31, or 12h, 30d, 8w") from None
    seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    if seconds <= time.time():
        raise ConfigError(f"--expires is {text!r}, which is over: the key would open nothing")
    return seconds
