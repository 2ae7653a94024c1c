"""The OpenAPI document, and `/docs`, a page that shows it without fetching anything from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from arriero.api.parameters import GenerationParameters
from arriero.api.schemas import Error
from arriero.wire.headers import IGNORED

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "The request cannot be honoured; `param` names what is at fault."},
    404: {"model": Error, "description": "No such model."},
    413: {"model": Error, "description": "The body is too large."},
    415: {"model": Error, "description": "The body is not declared to be JSON."},
    500: {"model": Error, "description": "The engine failed."},
    503: {"model": Error, "description": "No room for the request now; `Retry-After` says when to try again."},
}

_SCHEMA = "#/components/schemas/{model}"
_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon-32x32.png": "image/png"}


def describe_generation(
    parameters: type[GenerationParameters], answer: type[BaseModel], chunk: type[BaseModel], **example: Any
) -> dict[str, Any]:
    """What FastAPI is to document of a route whose answer may be a stream of chunks; otherwise as `describe`."""
    described = describe(parameters, answer, **example)
    described["responses"][200] |= {
        "description": "The answer, or the stream of its parts, which ends with the data `[DONE]`.",
        "content": {"text/event-stream": {"itemSchema": _event(chunk)}},
    }
    return described


def describe(parameters: type[BaseModel], answer: type[BaseModel], **example: Any) -> dict[str, Any]:
    """What FastAPI is to document of a route that reads its body and writes its answer by itself.

    `example` is a body to try.
    """
    headers = {IGNORED: {"description": "Parameters that have no effect here.", "schema": {"type": "string"}}}
    success = {"model": answer, "headers": headers, "description": "The answer."}
    schema = {"$ref": _SCHEMA.format(model=parameters.__name__)}
    body = {"application/json": {"schema": schema, "example": example}}
    return {
        "responses": {200: success, **ERRORS},
        "openapi_extra": {"requestBody": {"required": True, "content": body}},
    }


def _event(chunk: type[BaseModel]) -> dict[str, Any]:
    """What one event of a stream is, as OpenAPI 3.2 describes them."""
    content = {"anyOf": [{"$ref": _SCHEMA.format(model=each.__name__)} for each in (chunk, Error)]}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def document(app: FastAPI, taken: Sequence[type[BaseModel]], given: Sequence[type[BaseModel]]) -> None:
    """Have `app.openapi()` also describe what routes take and give without telling FastAPI."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            components = generate()["components"]
            untold = _schemas("validation", *taken) | _schemas("serialization", *given)
            components["schemas"] = dict(sorted((components["schemas"] | untold).items()))
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend the document


def _schemas(mode: JsonSchemaMode, *models: type[BaseModel]) -> dict[str, Any]:
    _, definitions = models_json_schema([(model, mode) for model in models], ref_template=_SCHEMA)
    return dict(definitions["$defs"])


def documentation_routes(title: str) -> APIRouter:
    """`/docs` and what the page is made of."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/docs")
    async def show_documentation() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=title,
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon-32x32.png",
        )

    for name, media_type in _ASSETS.items():
        routes.add_api_route(f"/docs/{name}", _asset(name, media_type))
    return routes


def _asset(name: str, media_type: str) -> Any:
    async def serve_asset() -> Response:
        content = resources.files("fastapi_swagger").joinpath("resources", name).read_bytes()
        return Response(content, media_type=media_type, headers={"cache-control": "max-age=86400"})

    return serve_asset
