"""The gateway's own routes as OpenAPI describes them, for the document that the API gives."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

_ERROR = "#/components/schemas/Error"


class UsageTotal(BaseModel):
    """What was used."""

    requests: int
    errors: int = Field(description="Requests among them that were refused or failed, also amid their answer.")
    prompt_tokens: int
    cached_tokens: int = Field(description="Of the prompts' tokens those that needed no computation.")
    completion_tokens: int
    total_tokens: int
    seconds: float = Field(description="From the first byte asked to the last one answered.")


class UsageRow(UsageTotal):
    """What one key used of one model at one endpoint on one day."""

    object: Literal["usage"]
    day: str = Field(description="UTC, such as 2026-05-31.")
    key: str = Field(description="Id of the key; empty: none was asked for.")
    model: str = Field(description="Empty: none was asked.")
    endpoint: str = Field(description="Empty: there is none of that path.")


class UsageList(BaseModel):
    """Usage by day, key, model and endpoint."""

    object: Literal["list"]
    data: list[UsageRow]
    total: UsageTotal


class Liveness(BaseModel):
    """Whether the server should be restarted."""

    status: Literal["ok", "failed"]
    reason: str | None = Field(None, description="Why it should be.")


class Readiness(BaseModel):
    """Whether the server takes requests."""

    status: Literal["ready", "loading", "stopping"]
    warning: str | None = Field(None, description="What somebody should look at.")


MODELS: tuple[type[BaseModel], ...] = (UsageList, Liveness, Readiness)
"""What `PATHS` refers to, beside the API's own errors."""


def _json(model: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": model}}}


def _answer(description: str, model: type[BaseModel]) -> dict[str, Any]:
    return {"description": description, "content": _json(f"#/components/schemas/{model.__name__}")}


def _refusals(**descriptions: str) -> dict[str, Any]:
    return {status.strip("_"): {"description": text, "content": _json(_ERROR)} for status, text in descriptions.items()}


def _filter(name: str, description: str, **schema: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": {"type": "string", **schema}}


_KEY = {"_401": "No key, or one that opens nothing.", "_403": "The key is not for this."}
PATHS: dict[str, dict[str, Any]] = {
    "/v1/usage": {
        "get": {
            "tags": ["Usage"],
            "summary": "Show Usage",
            "description": "Tell what was used: of the caller's own, or for an admin of everybody's.",
            "operationId": "show_usage",
            "parameters": [
                _filter("key", "Id of a key; other people's for admins alone."),
                _filter("model", "Name of a model."),
                _filter("since", "First day, UTC.", format="date"),
                _filter("until", "Last day, UTC.", format="date"),
            ],
            "responses": {
                "200": _answer("Usage, the oldest day first.", UsageList),
                **_refusals(_400="A filter is wrong.", **_KEY),
            },
        }
    },
    "/metrics": {
        "get": {
            "tags": ["Health"],
            "summary": "Show Metrics",
            "description": "Metrics for Prometheus; for admins, and keys whose endpoints name it.",
            "operationId": "show_metrics",
            "responses": {
                "200": {
                    "description": "In Prometheus' format, or OpenMetrics where that is accepted.",
                    "content": {
                        kind: {"schema": {"type": "string"}} for kind in ("text/plain", "application/openmetrics-text")
                    },
                },
                **_refusals(**_KEY),
            },
        }
    },
    "/health/live": {
        "get": {
            "tags": ["Health"],
            "summary": "Tell Liveness",
            "description": "Whether the server should be restarted. Asks for no key.",
            "operationId": "tell_liveness",
            "security": [],
            "responses": {"200": _answer("It is well.", Liveness), "503": _answer("It should be.", Liveness)},
        }
    },
    "/health/ready": {
        "get": {
            "tags": ["Health"],
            "summary": "Tell Readiness",
            "description": "Whether the server takes requests.",
            "operationId": "tell_readiness",
            "responses": {
                "200": _answer("It does.", Readiness),
                "503": _answer("It loads its model, or stops.", Readiness),
                **_refusals(**_KEY),
            },
        }
    },
}
"""OpenAPI's path items."""
