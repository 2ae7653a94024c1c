"""What schemathesis does to what it makes up: requests name the model that there is, or nothing else would be tried.

A deadline is one that can be met: a 504 for another would be no fault of the server's.
"""

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = "scripted"
    return body


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Of every phase, which `map_body` is not."""
    body = case.body
    if isinstance(body, dict) and type(deadline := body.get("deadline")) in (int, float) and 0 < deadline < 60:
        case.body = body | {"deadline": 60}
