"""`GET /health`: whether this server can answer."""

from __future__ import annotations

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response

from arriero.api.routes import Description, Routes, json_answer
from arriero.core import Engine
from arriero.errors import EngineDied
from arriero.pool import Pool


def health_routes(pool: Pool) -> Routes:
    """The route that tells how the engines of `pool` are."""
    routes = Routes("Health")

    @routes.get("/health", Description(gives="Health", faulty={503: "An engine failed."}))
    async def health(request: Request) -> Response:
        """Tell how the server is; 200 when every model's engine is at work."""
        models = {model.name: _stats(model.engine) for model in pool.list()}
        healthy = None not in models.values()
        return json_answer({"status": "ok" if healthy else "failed", "models": models}, 200 if healthy else 503)

    return routes


def _stats(engine: Engine) -> dict[str, int] | None:
    try:
        return asdict(engine.stats())
    except EngineDied:
        return None
