"""The whole API as one ASGI application."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from arriero.api.admin import admin_routes
from arriero.api.chat import chat_routes
from arriero.api.completions import completion_routes
from arriero.api.documentation import Others, documentation_routes
from arriero.api.embeddings import embedding_routes
from arriero.api.failures import guarded
from arriero.api.generation import Delivery
from arriero.api.health import health_routes
from arriero.api.models import model_routes
from arriero.api.remote import Remote
from arriero.api.rerank import rerank_routes
from arriero.api.routes import Table
from arriero.api.tokens import token_routes
from arriero.pool import Pool
from arriero.wire.errors import INVALID_REQUEST, error_body
from arriero.wire.headers import Application
from arriero.wire.scope import meter_of
from arriero.wire.sse import Receive, Send


def application(pool: Pool, *, delivery: Delivery | None = None, others: Others = lambda: ({}, ())) -> Application:
    """Every endpoint for the models of `pool`; whatever goes wrong is answered with an OpenAI error object.

    `others` describes routes that are answered in front of it.
    """
    delivery = delivery or Delivery()
    groups = [
        chat_routes(pool, delivery),
        completion_routes(pool, delivery),
        embedding_routes(pool, delivery),
        rerank_routes(pool, delivery),
        token_routes(pool, delivery),
        model_routes(pool),
        admin_routes(pool),
        health_routes(pool),
    ]
    routes = [route for group in groups for route in group.routes]
    api = Api(Table([*routes, *documentation_routes(routes, others).routes]))
    posted = {route.path for route in routes if route.method == "POST"}
    return Remote(api, pool, posted, delivery.body_limit) if pool.upstreams else api


class Api:
    """Answers requests by a table of routes."""

    def __init__(self, table: Table) -> None:
        self.table = table

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer."""
        found = self.table.find(scope["method"], scope["path"])
        if found is None:
            await self._refuse(scope)(scope, receive, send)
            return
        route, scope["path_params"] = found
        meter_of(scope).endpoint = route.path
        request = Request(scope, receive)

        async def answer(send: Send) -> None:
            response = await route.endpoint(request)
            await response(scope, receive, send)

        await guarded(scope, receive, send, answer)

    def _refuse(self, scope: MutableMapping[str, Any]) -> Response:
        """No such path, or not with this method."""
        status, headers, code = 404, {}, "unknown_url"
        message = f"Invalid URL ({scope['method']} {scope['path']})"
        if methods := self.table.methods(scope["path"]):
            status, headers, code = 405, {"allow": ", ".join(methods)}, "method_not_allowed"
            message = f"Not allowed to {scope['method']} on {scope['path']}."
        return Response(error_body(message, INVALID_REQUEST, code=code), status, headers, "application/json")
