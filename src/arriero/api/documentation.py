"""The OpenAPI document, and `/docs`, a page that shows it without fetching anything from elsewhere.

Both are made when they are first asked for: the web framework that makes them takes longer to import than the
server to start.
"""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from arriero import __version__
from arriero.api.routes import MODEL, Description, Endpoint, Route, Routes, json_answer
from arriero.wire.headers import IGNORED

_TITLE = "Arriero"
_SCHEMA = "#/components/schemas/{model}"
_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon-32x32.png": "image/png"}
_ERRORS = {
    400: "The request cannot be honoured; `param` names what is at fault.",
    401: "No key, or one that opens nothing.",
    403: "The key is not for this.",
    404: "No such model.",
    413: "The body is too large.",
    415: "The body is not declared to be JSON.",
    429: "A limit of the key; `Retry-After` says when to try again.",
    500: "The engine failed.",
    503: "No room for the request now; `Retry-After` says when to try again.",
    504: "The answer was not complete within the `deadline`.",
}


Others = Callable[[], tuple[Mapping[str, Any], Sequence[type[BaseModel]]]]
"""Describes routes that somebody else answers: OpenAPI's path items, and the schemas that these refer to."""


def documentation_routes(described: Sequence[Route], others: Others) -> Routes:
    """`/openapi.json`, which describes these routes, `/docs`, and what that page is made of."""
    routes = Routes("Documentation")
    describe = functools.cache(lambda: _document(described, *others()))

    @routes.get("/openapi.json")
    async def show_document(request: Request) -> Response:
        document = await asyncio.to_thread(describe)
        place = request.scope.get("root_path", "").rstrip("/")
        return json_answer(document | ({"servers": [{"url": place}]} if place else {}))

    @routes.get("/docs")
    async def show_documentation(request: Request) -> Response:
        return await asyncio.to_thread(_page)

    for name, media_type in _ASSETS.items():
        routes.get(f"/docs/{name}")(_asset(name, media_type))
    return routes


def _page() -> Response:
    from fastapi.openapi.docs import get_swagger_ui_html

    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title=_TITLE,
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon-32x32.png",
    )


def _asset(name: str, media_type: str) -> Endpoint:
    async def serve_asset(request: Request) -> Response:
        content = resources.files("fastapi_swagger").joinpath("resources", name).read_bytes()
        return Response(content, media_type=media_type, headers={"cache-control": "max-age=86400"})

    return serve_asset


def _document(
    routes: Sequence[Route], paths: Mapping[str, Any], schemas_of_paths: Sequence[type[BaseModel]]
) -> dict[str, Any]:
    """The OpenAPI document of these routes and paths, which tells that a key may be asked for."""
    from fastapi import FastAPI

    app = FastAPI(
        title=_TITLE, version=__version__, description="An OpenAI-compatible server of language models.", docs_url=None
    )
    taken, chunks = [], []
    for route in routes:
        about = route.description
        if about is None:
            continue
        described = _of_generation(about) if about.takes else _of_question(about, route.path)
        app.add_api_route(route.path, route.endpoint, methods=[route.method], tags=[route.heading], **described)
        taken += [about.takes] if about.takes else []
        chunks += [_schema(about.chunk)] if about.chunk else []
    document: dict[str, Any] = app.openapi()
    components = document["components"]
    given = _schemas("serialization", [*chunks, *schemas_of_paths])
    schemas = components["schemas"] | _schemas("validation", taken) | given
    components["schemas"] = dict(sorted(schemas.items()))
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}, {}]
    document["paths"] |= paths
    return document


def _of_generation(about: Description) -> dict[str, Any]:
    """What FastAPI is to document of a route that reads its body and writes its answer by itself."""
    assert about.takes
    headers = {IGNORED: {"description": "Parameters that have no effect here.", "schema": {"type": "string"}}}
    success: dict[str, Any] = {"model": _schema(about.gives), "headers": headers, "description": "The answer."}
    if about.chunk:
        success |= {
            "description": "The answer, or the stream of its parts, which ends with the data `[DONE]`.",
            "content": {"text/event-stream": {"itemSchema": _event(about.chunk)}},
        }
    schema = {"$ref": _SCHEMA.format(model=about.takes.__name__)}
    body = {"application/json": {"schema": schema, "example": dict(about.example)}}
    return {
        "responses": {200: success, **{status: _error(status) for status in _ERRORS}},
        "openapi_extra": {"requestBody": {"required": True, "content": body}},
    }


def _event(chunk: str) -> dict[str, Any]:
    """What one event of a stream is, as OpenAPI 3.2 describes them."""
    content = {"anyOf": [{"$ref": _SCHEMA.format(model=each)} for each in (chunk, "Error")]}
    json = {"contentMediaType": "application/json", "contentSchema": content}
    data = {"type": "string", "anyOf": [json, {"const": "[DONE]"}]}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def _of_question(about: Description, path: str) -> dict[str, Any]:
    """The same of a route whose requests have no body."""
    gives: Any = functools.reduce(operator.or_, map(_schema, about.gives.split(" | ")))
    responses: dict[int | str, Any] = {
        status: {"model": _schema(about.gives), "description": text} for status, text in about.faulty.items()
    }
    extra = {}
    if MODEL in path:
        responses["4XX"] = _error(404)
        extra["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    return {"response_model": gives, "responses": responses, "openapi_extra": extra}


def _error(status: int) -> dict[str, Any]:
    return {"model": _schema("Error"), "description": _ERRORS[status]}


def _schema(name: str) -> type[BaseModel]:
    from arriero.api import alpaca_schemas, schemas

    found: type[BaseModel] = getattr(alpaca_schemas if name.startswith("Alpaca") else schemas, name)
    return found


def _schemas(mode: JsonSchemaMode, models: Sequence[type[BaseModel]]) -> dict[str, Any]:
    _, definitions = models_json_schema([(model, mode) for model in models], ref_template=_SCHEMA)
    return dict(definitions["$defs"])
