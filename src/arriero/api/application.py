"""The whole API as one ASGI application."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Collection, Iterable, MutableMapping
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from arriero import __version__
from arriero.api.admin import admin_routes
from arriero.api.chat import chat_chunk, chat_routes
from arriero.api.completions import completion_routes
from arriero.api.documentation import document, documentation_routes
from arriero.api.embeddings import embedding_routes
from arriero.api.encoding_parameters import ENDPOINTS
from arriero.api.generation import Delivery
from arriero.api.health import health_routes
from arriero.api.models import model_routes
from arriero.api.parameters import ChatParameters, CompletionParameters
from arriero.api.remote import Remote
from arriero.api.rerank import rerank_routes
from arriero.api.tokens import DetokenizeParameters, TokenizeParameters, token_routes
from arriero.errors import ArrieroError
from arriero.pool import Pool
from arriero.wire.errors import INVALID_REQUEST, error_answer, error_body
from arriero.wire.headers import Application
from arriero.wire.scope import meter_of, note_error
from arriero.wire.sse import Message, Receive, Send

_log = logging.getLogger(__name__)


def application(pool: Pool, *, delivery: Delivery | None = None) -> Application:
    """Every endpoint for the models of `pool`; whatever goes wrong is answered with an OpenAI error object."""
    delivery = delivery or Delivery()
    app = FastAPI(
        title="Arriero",
        version=__version__,
        description="An OpenAI-compatible server of language models.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    routers = [
        chat_routes(pool, delivery),
        completion_routes(pool, delivery),
        embedding_routes(pool, delivery),
        rerank_routes(pool, delivery),
        token_routes(pool, delivery),
        model_routes(pool),
        admin_routes(pool),
        health_routes(pool),
    ]
    for router in routers:
        app.include_router(router)
    app.include_router(documentation_routes(app.title))
    document(
        app,
        taken=[ChatParameters, CompletionParameters, *ENDPOINTS.values(), TokenizeParameters, DetokenizeParameters],
        given=[chat_chunk(delivery.profile)],
    )
    app.add_exception_handler(ArrieroError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_error)
    direct = _Direct(app, routers)
    return Remote(direct, pool, direct.paths, delivery.body_limit) if pool.upstreams else direct


class _Direct:
    """Answers what is posted without the framework's way to an endpoint, which takes longer than a short answer itself.

    The framework still documents these routes, and answers everything else.
    """

    def __init__(self, app: FastAPI, routers: Iterable[APIRouter]) -> None:
        self._app = app
        self._endpoints = {
            route.path: route.endpoint
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute) and route.methods == {"POST"}
        }

    @property
    def paths(self) -> Collection[str]:
        """Where something can be posted."""
        return self._endpoints.keys()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            if route := scope.get("route"):
                meter_of(scope).endpoint = route.path
            return
        meter_of(scope).endpoint = scope["path"]
        started = False

        def watched(message: Message) -> Awaitable[None]:
            nonlocal started
            started = True
            return send(message)

        request = Request(scope, receive)
        try:
            response = await endpoint(request)
            await response(scope, receive, watched)
        except ClientDisconnect:  # amid the body
            await Response(status_code=499)(scope, receive, send)  # nobody reads it
        except Exception as error:
            if started:
                raise  # too late to say so; the server logs it and breaks the connection
            if not isinstance(error, ArrieroError):
                _log.exception("a request failed")
            answer = await _answer_error(request, error)
            await answer(scope, receive, send)


async def _answer_error(request: Request, error: Exception) -> Response:
    note_error(request.scope, error)
    answer = error_answer(error)
    return Response(answer.body, answer.status, answer.headers, "application/json")


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """What the router raises: no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    message, code = f"Invalid URL ({request.method} {request.url.path})", "unknown_url"
    if error.status_code == 405:
        message, code = f"Not allowed to {request.method} on {request.url.path}.", "method_not_allowed"
    body = error_body(message, INVALID_REQUEST, code=code)
    return Response(body, error.status_code, error.headers, "application/json")
