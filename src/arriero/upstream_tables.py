"""The `[[models]]` tables of the configuration file that name other servers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, field_validator, model_validator

from arriero.errors import ConfigError

_KEY = re.compile(r"[!-~]+")
_NAME = re.compile(r"[^\s*]+\*?|\*")
_ADDRESS = "expected an address such as 'http://10.0.0.5:8000/v1', or a list of them"
_COMPLAINTS = {
    "extra_forbidden": "no such setting",
    "missing": "it has to be there",
    "tuple_type": _ADDRESS,
    "too_short": _ADDRESS,
    "model_type": _ADDRESS,
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "string_type": "expected a text",
}
"""What is said of pydantic's kinds of faults where its own words are about Python."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class _WithKey(_Table):
    key: str | None = Field(None, repr=False, description="Shown to the server instead of the caller's.")
    key_env: str | None = Field(None, description="Environment variable that holds the key.", min_length=1)

    @field_validator("key")
    @classmethod
    def _check_key(cls, value: str | None) -> str | None:
        if value is not None and not _KEY.fullmatch(value):
            raise ValueError("no key: expected printable ASCII without spaces")
        return value

    @model_validator(mode="after")
    def _check_one_key(self) -> Self:
        if self.key is not None and self.key_env is not None:
            raise ValueError("key and key_env exclude each other")
        return self

    @property
    def has_key(self) -> bool:
        """Whether a key is configured."""
        return self.key is not None or self.key_env is not None


class Address(_WithKey):
    """Where one server is, and the key that it alone is shown."""

    url: str = Field(description="http:// or https://, with /v1 or what stands in its place.")
    weight: float = Field(1.0, description="How much work it takes beside the others.", gt=0, le=1000)

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError:
            raise ValueError("no address") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError("not an http:// or https:// address")
        if parts.username is not None or parts.password is not None:
            raise ValueError("a key in the address; use key or key_env")
        if parts.query or parts.fragment or not _KEY.fullmatch(value):
            raise ValueError("an address with more than host, port and path")
        return value.rstrip("/") if parts.path.strip("/") else f"{value.rstrip('/')}/v1"


class UpstreamTable(_WithKey):
    """A model that other servers answer for."""

    name: str = Field(description="What callers name; with * at the end, every name that begins so.")
    upstream: tuple[Address, ...] = Field(description="One address, or several tables of addresses.", min_length=1)
    model: str = Field("", description="The servers' own name for it; left out: what * stands for, or the same name.")
    forward_key: bool = Field(False, description="Show the servers the caller's own key.")
    connect_timeout: float = Field(5.0, description="Seconds until a connection is there.", gt=0, le=600)
    first_byte_timeout: float = Field(600.0, description="Seconds until an answer begins.", gt=0, le=86_400)
    between_bytes_timeout: float = Field(120.0, description="Seconds of silence amid an answer.", gt=0, le=86_400)
    total_timeout: float = Field(3600.0, description="Seconds that an answer may take.", gt=0, le=604_800)
    ask_usage: bool = Field(
        True, description="Ask for usage at the end of streams, for the accounts; off for servers that do not know it."
    )
    rewrite_answers: bool = Field(
        False, description="Tell the caller's name for the model in answers, not the server's."
    )
    answer_limit: ByteSize = Field(
        ByteSize(256 * 2**20), description="Largest answer that is not streamed.", ge=1024, le=2**40
    )

    @model_validator(mode="before")
    @classmethod
    def _share_key(cls, given: dict[str, Any]) -> dict[str, Any]:
        """One address may stand there as it is; the table's key is that of each address that has none."""
        addresses = given.get("upstream")
        if isinstance(addresses, str | Mapping):
            addresses = [addresses]
        if not isinstance(addresses, list | tuple):
            return given
        shared = {name: given[name] for name in ("key", "key_env") if given.get(name) is not None}

        def whole(address: object) -> object:
            if isinstance(address, str):
                address = {"url": address}
            if not isinstance(address, Mapping) or "key" in address or "key_env" in address:
                return address
            return {**address, **shared}

        return {**given, "upstream": [whole(each) for each in addresses]}

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, value in (("name", self.name), ("model", self.model)):
            if (value or name == "name") and not _NAME.fullmatch(value):
                raise ValueError(f"{name} is {value!r}: expected a name without spaces, with * only at its end")
        if self.model and self.name.endswith("*") != self.model.endswith("*"):
            raise ValueError("name and model must both end with *, or neither")
        if self.forward_key and (self.has_key or any(each.has_key for each in self.upstream)):
            raise ValueError("forward_key excludes key and key_env")
        return self


def upstream_tables(tables: Sequence[Mapping[str, Any]]) -> list[UpstreamTable]:
    """Those of some tables `[[models]]` that have addresses, checked.

    Raises `ConfigError` that names the table and the key and no value: that may be a secret.
    """
    parsed = [_parse(number, table) for number, table in enumerate(tables, 1) if "upstream" in table]
    names = [table.name for table in parsed]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two [[models]] have the name '{name}'; one may have several addresses")
    return parsed


def _parse(number: int, table: Mapping[str, Any]) -> UpstreamTable:
    try:
        return UpstreamTable(**table)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = ".".join(map(str, fault["loc"]))
        message = _COMPLAINTS.get(fault["type"]) or fault["msg"].removeprefix("Value error, ")
        raise ConfigError(f"[[models]] {number}: {f'{name}: ' if name else ''}{message}") from None
