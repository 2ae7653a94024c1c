"""Every parameter that the API describes with values that nobody expects: refused or honoured, never a 500."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from abuse.test_security import POSTED

VALUES: list[Any] = [
    True,
    0,
    -1,
    2**31,
    2**63,
    -(2**64),
    1e308,
    5e-324,
    0.5,
    "",
    "a\0\ud7ff\uffff",
    "x" * 10_000,
    [],
    [[[[]]]],
    [None],
    ["a", 1, {}],
    [2**40, -1],
    {},
    {"": {}},
    {"a": [{"b": None}]},
    {"type": "json_schema"},
    {"type": "object", "$ref": "#"},
]


async def test_no_value_of_any_parameter_makes_the_server_fail(served: Any, figures: Callable[[str], None]) -> None:
    described = (await served.client.get("/openapi.json")).json()
    seen: Counter[int] = Counter()
    names = set()
    for path, least in POSTED.items():
        schema = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        schema = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        for name in schema["properties"]:
            names.add((path, name))
            for value in VALUES:
                body = {"model": served.model.name, "max_tokens": 2, **least, name: value}
                answer = await served.client.post(path, json=body)
                seen[answer.status_code] += 1
                # A deadline that nobody can meet is answered as such.
                assert answer.status_code < 500 or (name, answer.status_code) == ("deadline", 504), (path, name, value)
    figures(
        f"odd values: {len(names)} parameters with {len(VALUES)} values each, answers "
        + ", ".join(f"{status}: {number}" for status, number in sorted(seen.items()))
    )
    assert len(names) > 100
