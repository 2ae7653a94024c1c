"""The `[[models]]` tables of the configuration file: settings of one model each, over those of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, ValidationError

from arriero.config import Settings, check_name
from arriero.config_description import flag, group
from arriero.config_sources import complaint, suggestion
from arriero.errors import ConfigError

_GROUPS = ("Model", "Engine", "Requests", "Scripted engine")
_OF_ONE_MODEL = ("model", "model_name", "base_model", "lora_model", "tokenizer_path", "lora", "script")
"""Settings that say which model it is, and so cannot stand for all tables."""
PER_MODEL = frozenset(
    name
    for name, field in Settings.model_fields.items()
    if group(field) in _GROUPS and name not in ("cache", "model_name")
) | {"profile"}
"""Settings that a table may have; those that it does not have are the file's, the environment's and the flags'."""


def _check_name(name: str) -> str:
    if "*" in name:
        raise ValueError("not a name")
    return check_name(name)


def _check_alias(alias: str) -> str:
    if alias != "*":
        _check_name(alias.removesuffix("*"))
    return alias


class _Own(BaseModel):
    """What only a table has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(_check_name)]
    aliases: tuple[Annotated[str, AfterValidator(_check_alias)], ...] = ()
    default: StrictBool = False
    preload: StrictBool = False
    ttl: float | None = Field(None, ge=0, le=1e9, strict=True)
    defaults: dict[str, Any] = {}


_EXPECTED = {
    "name": "a printable text without *",
    "aliases": "a list of texts, with * only at their end",
    "default": "true or false",
    "preload": "true or false",
    "ttl": "a number from 0 to 1000000000",
    "defaults": "a table of parameters",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTable:
    """One model that this server computes itself."""

    name: str
    aliases: tuple[str, ...]
    """Further names; one that ends with * stands for all that begin so."""
    default: bool
    """Whether it answers requests that name no model."""
    preload: bool
    """Whether it is loaded at the start, and not when somebody first asks for it."""
    ttl: float
    defaults: Mapping[str, Any]
    """Parameters that stand for what requests leave out; not checked yet."""
    settings: Settings
    """As for a server of this model alone."""


def model_tables(settings: Settings) -> list[ModelTable]:
    """The tables of models that this server computes, checked.

    Raises `ConfigError` that names the table and the key, with a suggestion for a key that is unknown.
    """
    for name in ("memory_budget", "ttl", "load_wait"):
        if not settings.models and name in settings.model_fields_set:
            raise ConfigError(f"{flag(name)} is for several models, and there are no [[models]]")
    tables = [
        _table(number, table, settings) for number, table in enumerate(settings.models, 1) if "upstream" not in table
    ]
    single = [name for name in _OF_ONE_MODEL if name in settings.model_fields_set and getattr(settings, name)]
    if tables and single:
        raise ConfigError(
            f"{flag(single[0])} is for a server of one model, and there are [[models]]: put it into a table"
        )
    if len(defaults := [table.name for table in tables if table.default]) > 1:
        raise ConfigError(f"one of the [[models]] can be the default, not {' and '.join(defaults)}")
    own = [name for table in tables for name in (table.name, *table.aliases, *table.settings.lora)]
    taken = own + [table.get("name") for table in settings.models if "upstream" in table]
    for name in own:
        if taken.count(name) > 1:
            raise ConfigError(f"two [[models]] have the name or alias '{name}'")
    return tables


def _table(number: int, table: dict[str, Any], settings: Settings) -> ModelTable:
    where = f"[[models]] {number}" + (f" ({table['name']})" if isinstance(table.get("name"), str) else "")
    known = PER_MODEL | _Own.model_fields.keys()
    for key in table.keys() - known:
        raise ConfigError(f"'{key}' in {where} is no setting of a model{suggestion(key.replace('-', '_'), known)}")
    try:
        own = _Own(**{key: value for key, value in table.items() if key in _Own.model_fields})
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        raise ConfigError(f"'{key}' in {where} is {table.get(key)!r}, expected {_EXPECTED[key]}") from None
    given = {key: value for key, value in table.items() if key in PER_MODEL}
    try:
        parsed = Settings(**given)
    except ValidationError as error:
        wrong = dict.fromkeys(str(detail["loc"][0]) for detail in error.errors())
        raise ConfigError("; ".join(complaint(key, given[key], f"'{key}' in {where}") for key in wrong)) from None
    changes = {key: getattr(parsed, key) for key in given}
    return ModelTable(
        name=own.name,
        aliases=own.aliases,
        default=own.default,
        preload=own.preload,
        ttl=settings.ttl if own.ttl is None else own.ttl,
        defaults=own.defaults,
        settings=settings.model_copy(update={**changes, "model_name": own.name, "models": ()}),
    )
