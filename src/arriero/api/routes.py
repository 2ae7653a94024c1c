"""Which endpoint answers a request: a table of our own, for which no web framework is imported.

The framework only describes the table for the documentation, when somebody wants to see that (`api.documentation`).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from arriero.wire.headers import ignored_headers

Endpoint = Callable[[Request], Awaitable[Response]]

MODEL = "{model}"
"""In a path: the id of a model, which may contain slashes; the endpoint finds it in `request.path_params`."""


@dataclass(frozen=True, slots=True)
class Description:
    """What the documentation says of an endpoint beside its docstring."""

    gives: str
    """Names in `api.schemas` or `api.alpaca_schemas`, with | between them."""
    takes: type[BaseModel] | None = None
    chunk: str | None = None
    """What a stream of it consists of, by its name there."""
    example: Mapping[str, Any] = field(default_factory=dict)
    """A body to try."""
    faulty: Mapping[int, str] = field(default_factory=dict)
    """By status: when it answers so, of an endpoint without a body."""


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint, and how to get there."""

    method: str
    path: str
    endpoint: Endpoint
    heading: str
    """Under which the documentation lists it."""
    description: Description | None
    """None: it is not documented."""


class Routes:
    """The endpoints of one heading; `get` and `post` are decorators."""

    def __init__(self, heading: str) -> None:
        self.routes: list[Route] = []
        self._heading = heading

    def get(self, path: str, description: Description | None = None) -> Callable[[Endpoint], Endpoint]:
        """Answer GET."""
        return self._add("GET", path, description)

    def post(self, path: str, description: Description | None = None) -> Callable[[Endpoint], Endpoint]:
        """Answer POST."""
        return self._add("POST", path, description)

    def _add(self, method: str, path: str, description: Description | None) -> Callable[[Endpoint], Endpoint]:
        def add(endpoint: Endpoint) -> Endpoint:
            self.routes.append(Route(method, path, endpoint, self._heading, description))
            return endpoint

        return add


class Table:
    """Finds the route of a request."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._exact = {(route.method, route.path): route for route in self.routes if MODEL not in route.path}
        self._patterns = [
            (re.compile(re.escape(route.path).replace(re.escape(MODEL), "(?P<model>.*)"), re.DOTALL), route)
            for route in self.routes
            if MODEL in route.path
        ]

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """The route, and what its path leaves open; None if there is none."""
        if exact := self._exact.get((method, path)):
            return exact, {}
        for pattern, route in self._patterns:
            if route.method == method and (found := pattern.fullmatch(path)):
                return route, found.groupdict()
        return None

    def methods(self, path: str) -> list[str]:
        """What a path can be asked."""
        return sorted({route.method for route in self.routes if self.find(route.method, path)})


def json_answer(content: object, status: int = 200, *, ignored: Sequence[str] = ()) -> Response:
    """An answer of plain values and arrays of float32, and of what the request asked for in vain."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, ignored_headers(ignored), media_type="application/json")
