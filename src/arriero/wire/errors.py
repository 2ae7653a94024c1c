"""From errors to HTTP: the one table that gives each its status, `type` and `code`.

Bodies have the shape of the OpenAI reference: `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import orjson

from arriero.errors import (
    ArrieroError,
    ConfigError,
    ContextOverflow,
    DeadlineExceeded,
    EngineClosed,
    EngineDied,
    Forbidden,
    InvalidKey,
    InvalidRequest,
    ModelLoadError,
    Overloaded,
    RateLimited,
    StoreError,
    UnknownModel,
    UnsupportedModel,
    UpstreamError,
    UpstreamLoop,
    UpstreamTimeout,
)
from arriero.wire.scope import REQUEST_ID


class BodyTooLarge(InvalidRequest):
    """The request's body is longer than this server reads."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request body is larger than this server's limit of {limit} bytes.")


class UnsupportedMediaType(InvalidRequest):
    """The request's body is not declared to be JSON."""


INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
QUOTA = "insufficient_quota"

TABLE: dict[type[ArrieroError], tuple[int, str, str | None]] = {
    InvalidRequest: (400, INVALID_REQUEST, None),
    UnknownModel: (404, INVALID_REQUEST, "model_not_found"),
    ContextOverflow: (400, INVALID_REQUEST, "context_length_exceeded"),
    BodyTooLarge: (413, INVALID_REQUEST, "body_too_large"),
    UnsupportedMediaType: (415, INVALID_REQUEST, "unsupported_media_type"),
    InvalidKey: (401, INVALID_REQUEST, "invalid_api_key"),
    Forbidden: (403, INVALID_REQUEST, "insufficient_permissions"),
    RateLimited: (429, "requests", "rate_limit_exceeded"),
    Overloaded: (503, SERVER_ERROR, "overloaded"),
    DeadlineExceeded: (504, SERVER_ERROR, "deadline_exceeded"),
    EngineClosed: (503, SERVER_ERROR, "overloaded"),
    EngineDied: (500, SERVER_ERROR, "engine_died"),
    UpstreamError: (502, SERVER_ERROR, "upstream_error"),
    UpstreamTimeout: (504, SERVER_ERROR, "upstream_timeout"),
    UpstreamLoop: (508, SERVER_ERROR, "upstream_loop"),
    ModelLoadError: (500, SERVER_ERROR, "model_load_error"),
    UnsupportedModel: (500, SERVER_ERROR, "unsupported_model"),
    StoreError: (500, SERVER_ERROR, "store_error"),
    ConfigError: (500, SERVER_ERROR, "config_error"),
}
"""Error class to HTTP status, `type` and `code`; a class that is not listed goes by its nearest ancestor."""


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error as it goes over the wire."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def error_answer(error: Exception) -> ErrorAnswer:
    """The answer to an error that was raised; what nobody raised on purpose is a 500 that tells no details.

    A 500 has the request's id, as in the reference, so that its line of the log can be found.
    """
    if not isinstance(error, ArrieroError):
        message = "The server had an error while processing the request."
        return ErrorAnswer(500, error_body(_with_id(message), SERVER_ERROR))
    status, kind, code = next(TABLE[each] for each in type(error).__mro__ if each in TABLE)
    param = None
    if isinstance(error, InvalidRequest):
        param, code = error.param, error.code or code
    headers = {}
    if isinstance(error, Overloaded | RateLimited | EngineClosed):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, RateLimited):
        kind, code = error.kind, error.kind if error.kind == QUOTA else code
    if isinstance(error, DeadlineExceeded) or kind == QUOTA:
        headers["x-should-retry"] = "false"  # OpenAI's clients know it, and would try again too late or in vain
    if isinstance(error, InvalidKey):
        headers["www-authenticate"] = "Bearer"
    message = _with_id(str(error)) if status == 500 else str(error)
    return ErrorAnswer(status, error_body(message, kind, param, code), headers)


def _with_id(message: str) -> str:
    return f"{message} (request id: {request})" if (request := REQUEST_ID.get()) else message


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> bytes:
    """The JSON of an error; `kind` is the reference's `type`."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})
