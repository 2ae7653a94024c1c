"""`/admin/models`: which models are in memory, and to bring them there or away."""

from __future__ import annotations

import time

from fastapi import APIRouter

from arriero.api.documentation import ERRORS
from arriero.api.schemas import Residence, ResidenceList
from arriero.pool import Entry, Pool


def admin_routes(pool: Pool) -> APIRouter:
    """The routes for who runs the server."""
    routes = APIRouter(tags=["Administration"])

    @routes.get("/admin/models", response_model=ResidenceList)
    async def list_residences() -> ResidenceList:
        """Tell which models are in memory, and what they take."""
        return ResidenceList(object="list", data=[_residence(entry) for entry in pool.entries])

    @routes.post("/admin/models/{model:path}/load", response_model=Residence, responses={"4XX": ERRORS[404]})
    async def load(model: str) -> Residence:
        """Load a model, and answer when it is there."""
        return _residence(await pool.load(model))

    @routes.post("/admin/models/{model:path}/unload", response_model=Residence, responses={"4XX": ERRORS[404]})
    async def unload(model: str) -> Residence:
        """Unload a model once its requests are answered, and answer when it is gone."""
        return _residence(await pool.unload(model))

    return routes


def _residence(entry: Entry) -> Residence:
    return Residence(
        id=entry.name,
        state=entry.state,
        bytes=entry.num_bytes,
        idle_seconds=round(time.monotonic() - entry.last_used, 3) if entry.last_used else None,
        ttl=entry.ttl,
        error=str(entry.error) if entry.error else None,
    )
