"""The whole API as one ASGI application."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from arriero import __version__
from arriero.api.chat import chat_routes
from arriero.api.completions import completion_routes
from arriero.api.documentation import document, documentation_routes
from arriero.api.generation import Delivery
from arriero.api.health import health_routes
from arriero.api.models import model_routes
from arriero.api.parameters import ChatParameters, CompletionParameters
from arriero.api.schemas import ChatCompletionChunk
from arriero.api.tokens import DetokenizeParameters, TokenizeParameters, token_routes
from arriero.errors import ArrieroError
from arriero.pool import Pool
from arriero.wire.errors import INVALID_REQUEST, error_answer, error_body
from arriero.wire.headers import Application, ResponseHeaders


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
    app.include_router(chat_routes(pool, delivery))
    app.include_router(completion_routes(pool, delivery))
    app.include_router(token_routes(pool, delivery))
    app.include_router(model_routes(pool))
    app.include_router(health_routes(pool))
    app.include_router(documentation_routes(app.title))
    document(
        app,
        taken=[ChatParameters, CompletionParameters, TokenizeParameters, DetokenizeParameters],
        given=[ChatCompletionChunk],
    )
    app.add_exception_handler(ArrieroError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_error)
    return ResponseHeaders(app)


async def _answer_error(request: Request, error: Exception) -> Response:
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
