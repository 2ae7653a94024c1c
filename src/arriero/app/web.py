"""The web's side of the composition root, apart because the web framework takes long to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from arriero.api.application import application
from arriero.api.generation import Delivery
from arriero.api.limits import Limits
from arriero.api.profile import PROFILES
from arriero.app.front import Front
from arriero.backends.upstream import Upstream
from arriero.config import Settings
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
    """Let requests in that the models of `pool` answer."""
    limits = Limits(
        max_prompt=settings.completion_max_prompt,
        max_tokens=settings.completion_max_tokens,
        max_n=settings.completion_max_n,
        max_logprobs=settings.completion_max_logprobs,
    )
    delivery = Delivery(profile=PROFILES[settings.profile], limits=limits, body_limit=settings.body_limit)
    front.open(pool, application(pool, delivery=delivery, others=_gateway))


def _gateway() -> tuple[Mapping[str, Any], Sequence[type[BaseModel]]]:
    from arriero.gateway.description import MODELS, PATHS  # for those who read the documentation

    return PATHS, MODELS
