"""The web's side of the composition root, apart because the web framework takes long to import."""

from __future__ import annotations

from arriero.api.application import application
from arriero.api.generation import Delivery
from arriero.api.limits import Limits
from arriero.api.profile import PROFILES
from arriero.config import Settings
from arriero.core import EngineStats
from arriero.errors import EngineDied
from arriero.gateway.access import log_access
from arriero.gateway.entrance import Entrance
from arriero.gateway.metrics import Metrics, ModelState, ServerState
from arriero.gateway.routes import MetricsRoute
from arriero.pool import Pool, ServedModel
from arriero.wire.headers import Application


def create_app(settings: Settings, model: ServedModel) -> Application:
    """The application that answers for `model` and its variants, whose engine the caller starts and closes."""
    limits = Limits(
        max_prompt=settings.completion_max_prompt,
        max_tokens=settings.completion_max_tokens,
        max_n=settings.completion_max_n,
        max_logprobs=settings.completion_max_logprobs,
    )
    delivery = Delivery(profile=PROFILES[settings.profile], limits=limits, body_limit=settings.body_limit)
    pool = Pool([model])

    def state() -> ServerState:
        models = [_state(each) for each in pool.list() if each.parent is None]
        return ServerState(ready=True, num_running=entrance.num_running, lag=0.0, models=models)

    metrics = Metrics(state)
    entrance = Entrance(
        MetricsRoute(application(pool, delivery=delivery), metrics),
        [metrics.count, log_access],
        keep_bodies=settings.log_prompts,
    )
    return entrance


def _state(model: ServedModel) -> ModelState:
    """How a model is; its adapters are part of it."""
    try:
        return ModelState(name=model.name, state="ready", stats=model.engine.stats())
    except EngineDied:
        return ModelState(name=model.name, state="failed", stats=EngineStats())
