"""`/admin/models`: which models are in memory, and to bring them there or away."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from arriero.api.routes import Description, Routes, json_answer
from arriero.pool import Entry, Pool


def admin_routes(pool: Pool) -> Routes:
    """The routes for who runs the server."""
    routes = Routes("Administration")

    @routes.get("/admin/models", Description(gives="ResidenceList"))
    async def list_residences(request: Request) -> Response:
        """Tell which models are in memory, and what they take."""
        return json_answer({"object": "list", "data": [_residence(entry) for entry in pool.entries]})

    @routes.post("/admin/models/{model}/load", Description(gives="Residence"))
    async def load(request: Request) -> Response:
        """Load a model, and answer when it is there."""
        return json_answer(_residence(await pool.load(request.path_params["model"])))

    @routes.post("/admin/models/{model}/unload", Description(gives="Residence"))
    async def unload(request: Request) -> Response:
        """Unload a model once its requests are answered, and answer when it is gone."""
        return json_answer(_residence(await pool.unload(request.path_params["model"])))

    return routes


def _residence(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.name,
        "state": entry.state,
        "bytes": entry.num_bytes,
        "idle_seconds": round(time.monotonic() - entry.last_used, 3) if entry.last_used else None,
        "ttl": entry.ttl,
        "error": str(entry.error) if entry.error else None,
    }
