"""From the bytes of a request's body to checked parameters, or to one error that names the first fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from arriero.api.objects import Ignored, marks
from arriero.errors import InvalidRequest
from arriero.wire.errors import BodyTooLarge, UnsupportedMediaType
from arriero.wire.sse import Receive

Parameters = TypeVar("Parameters", bound=BaseModel)

_TYPES = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
}
"""pydantic's kinds of error that are about the type, with the type that was expected."""

_JSON_TYPES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    type(None): "null",
}
_PLAIN = frozenset({str, bool, int, float, type(None)})
"""Types of values with nothing inside; that a value is none of pydantic's models takes long to tell otherwise."""
_LONGEST_QUOTE = 64


async def read_parameters(
    request: Request,
    kind: type[Parameters],
    limit: int,
    complete: Callable[[dict[str, Any]], dict[str, Any]],
) -> tuple[Parameters, list[str]]:
    """The body as `kind`, and the names of what in it has no effect: keys that nobody knows, and marked ones.

    `complete` adds to the body, without its nulls, what stands for what it leaves out.

    Raises:
        UnsupportedMediaType: the body is not declared to be JSON.
        BodyTooLarge: it is longer than `limit` bytes; it is not read further.
        InvalidRequest: it is not a JSON object, or not what `kind` says, or asks for something refused.
    """
    headers = dict(request.scope["headers"])
    _check_media_type(headers.get(b"content-type", b"").decode("latin-1"))
    try:
        value = orjson.loads(await read_body(request.receive, headers.get(b"content-length", b""), limit))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"The request body must be a JSON object, not {_JSON_TYPES[type(value)]}.")
    return validated(kind, complete({name: each for name, each in value.items() if each is not None}))


def validated(kind: type[Parameters], value: dict[str, Any]) -> tuple[Parameters, list[str]]:
    """The same of a body that is read; raises `InvalidRequest`."""
    try:
        parameters = kind.model_validate(value)
    except ValidationError as error:
        raise _first_fault(error.errors(include_url=False, include_context=True), value) from None
    return parameters, list(_examine(parameters))


def _check_media_type(value: str) -> None:
    # A browser asks before it posts JSON to another site, and does not before it posts a form or plain text.
    if not is_json(value):
        raise UnsupportedMediaType("The request's Content-Type must be application/json.")


def is_json(content_type: str) -> bool:
    """Whether a `Content-Type` declares JSON."""
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


async def read_body(receive: Receive, declared: bytes, limit: int) -> bytes:
    """All of it, `declared` bytes by its header.

    Raises:
        BodyTooLarge: it is longer than `limit` bytes; it is not read further.
        ClientDisconnect: the client left amid it.
    """
    if declared.isdigit() and int(declared[:20]) > limit:
        raise BodyTooLarge(limit)
    pieces, size = [], 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise BodyTooLarge(limit)
        pieces.append(piece)
        more = message.get("more_body", False)
    return b"".join(pieces)


def _examine(value: Any, path: str = "") -> Iterator[str]:
    """Yields the dotted paths of what has no effect; raises for what is refused."""
    if isinstance(value, list):
        for index, each in enumerate(value):
            if type(each) not in _PLAIN:
                yield from _examine(each, f"{path}{index}.")
    if not isinstance(value, BaseModel):
        return
    given, marked = value.model_fields_set, marks(type(value))
    for name, mark in marked.items() if not given.isdisjoint(marked) else ():
        if name not in given or getattr(value, name) in mark.neutral:
            continue
        if isinstance(mark, Ignored):
            yield path + name
            continue
        raise InvalidRequest(
            f"Unsupported parameter: '{path}{name}' is not supported by this server.",
            param=path + name,
            code="unsupported_parameter",
        )
    fields = [name for name in given if type(getattr(value, name)) not in _PLAIN]
    for name in fields if len(fields) < 2 else filter(fields.__contains__, type(value).model_fields):
        yield from _examine(getattr(value, name), f"{path}{name}.")
    yield from (path + name for name in value.model_extra or ())


def _first_fault(errors: list[ErrorDetails], body: dict[str, Any]) -> InvalidRequest:
    """The first of pydantic's errors; of a union's, which are one a member, those that got furthest."""
    located = [(_path(error, body), error) for error in errors]
    first = located[0][0]
    related = [(path, error) for path, error in located if path[: len(first)] == first]
    path, error = max(related, key=lambda each: (len(each[0]), each[1]["type"] not in _TYPES))
    name = ".".join(map(str, path))
    if error["type"] in _TYPES:
        here = [each["type"] for where, each in related if where == path]
        expected = dict.fromkeys(_TYPES[each] for each in here if each in _TYPES)
        got = _JSON_TYPES.get(type(error["input"]), "something else")
        message = f"Invalid type for '{name}': expected {' or '.join(expected)}, but got {got} instead."
        return InvalidRequest(message, param=name, code="invalid_type")
    message, code = _describe(error, name)
    return InvalidRequest(message, param=name, code=code)


def _path(error: ErrorDetails, body: Any) -> tuple[str | int, ...]:
    """Where in the body the error is: its location without pydantic's names for the members of unions."""
    path: list[str | int] = []
    value: Any = body
    for part in error["loc"]:
        inside = part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int)
        if inside:
            value = value[part]
        elif not (error["type"] == "missing" and part == error["loc"][-1]):
            continue
        path.append(part)
    return tuple(path)


def _describe(error: ErrorDetails, name: str) -> tuple[str, str]:
    """Message and code of an error that is not about a type."""
    limits = error.get("ctx", {})
    bound = next((limits[each] for each in ("ge", "gt", "le") if each in limits), None)
    kind = "integer" if isinstance(bound, int) else "decimal"  # as the parameter is, whatever was given
    match error["type"]:
        case "missing":
            return f"Missing required parameter: '{name}'.", "missing_required_parameter"
        case "greater_than_equal":
            return f"Invalid '{name}': expected a value >= {limits['ge']}.", f"{kind}_below_min_value"
        case "greater_than":
            return f"Invalid '{name}': expected a value > {limits['gt']}.", f"{kind}_below_min_value"
        case "less_than_equal":
            return f"Invalid '{name}': expected a value <= {limits['le']}.", f"{kind}_above_max_value"
        case "too_short":
            return f"Invalid '{name}': expected an array of at least {limits['min_length']}.", "empty_array"
        case "too_long":
            return f"Invalid '{name}': expected an array of at most {limits['max_length']}.", "array_above_max_length"
        case "string_too_short":
            return f"Invalid '{name}': expected a string that is not empty.", "empty_string"
        case "literal_error":
            got = repr(error["input"])[:_LONGEST_QUOTE]
            return f"Invalid value for '{name}': expected {limits['expected']}, but got {got}.", "invalid_value"
        case "prompt_type":
            return error["msg"], "invalid_type"
    return f"Invalid '{name}': {error['msg']}.", "invalid_value"
