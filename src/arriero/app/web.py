"""The web's side of the composition root, apart because the web framework takes long to import."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from arriero.api.application import application
from arriero.api.generation import Delivery
from arriero.api.limits import Limits
from arriero.api.manner import Manner, manner
from arriero.api.profile import PROFILES
from arriero.app.front import Front
from arriero.backends.upstream import Upstream
from arriero.config import Settings
from arriero.errors import ConfigError, InvalidRequest
from arriero.model_tables import ModelTable, model_tables
from arriero.pool import Pool, ServedModel
from arriero.store.ledger import Ledger
from arriero.wire.headers import Application

if TYPE_CHECKING:
    from arriero.gateway.tracing import Tracing


def create_app(
    settings: Settings,
    model: ServedModel | None,
    ledger: Ledger | None = None,
    *,
    upstreams: Sequence[Upstream] = (),
    closed: bool = False,
    tracing: Tracing | None = None,
) -> Application:
    """The whole application for `model`, its variants and `upstreams`, all of which the caller starts and closes.

    `ledger`, `closed` and `tracing` as for `Front`; without a ledger nobody has a key but that of the settings.
    """
    front = Front(settings, ledger or Ledger(None), closed=closed, tracing=tracing)
    open_api(front, settings, Pool([model] if model else [], upstreams=upstreams))
    return front.application


def open_api(front: Front, settings: Settings, pool: Pool) -> None:
    """Let requests in that the models of `pool` answer.

    Raises `ConfigError` for a table's default that is none.
    """
    delivery = Delivery(
        profile=PROFILES[settings.profile],
        limits=_limits(settings),
        manners={name: manner for table in model_tables(settings) for name, manner in _manners(table)},
        body_limit=settings.body_limit,
    )
    front.open(pool, application(pool, delivery=delivery, others=_gateway))


def _manners(table: ModelTable) -> Iterator[tuple[str, Manner]]:
    """By name: of a table's model, and of its adapters, which are asked in the same way."""
    profile = PROFILES[table.settings.profile]
    try:
        found = manner(profile, _limits(table.settings), table.defaults)
    except InvalidRequest as error:
        raise ConfigError(f"'defaults' in [[models]] ({table.name}): {error}") from None
    yield from ((name, found) for name in (table.name, *table.settings.lora))


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_prompt=settings.completion_max_prompt,
        max_tokens=settings.completion_max_tokens,
        max_n=settings.completion_max_n,
        max_logprobs=settings.completion_max_logprobs,
    )


def _gateway() -> tuple[Mapping[str, Any], Sequence[type[BaseModel]]]:
    from arriero.gateway.description import MODELS, PATHS  # for those who read the documentation

    return PATHS, MODELS
