"""`GET /health`: whether this server can answer."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Response

from arriero.api.schemas import Health
from arriero.core import Engine
from arriero.errors import EngineDied
from arriero.pool import Pool


def health_routes(pool: Pool) -> APIRouter:
    """The route that tells how the engines of `pool` are."""
    routes = APIRouter(tags=["Health"])

    @routes.get(
        "/health", response_model=Health, responses={503: {"model": Health, "description": "An engine failed."}}
    )
    async def health(response: Response) -> Health:
        """Tell how the server is; 200 when every model's engine is at work."""
        models = {model.name: _stats(model.engine) for model in pool.list()}
        healthy = None not in models.values()
        response.status_code = 200 if healthy else 503
        return Health(status="ok" if healthy else "failed", models=models)

    return routes


def _stats(engine: Engine) -> dict[str, int] | None:
    try:
        return asdict(engine.stats())
    except EngineDied:
        return None
