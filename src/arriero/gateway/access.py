"""One line of the log for each request."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from arriero.gateway.entrance import Exchange
from arriero.gateway.metrics import METRICS
from arriero.gateway.routes import LIVE, READY
from arriero.wire.scope import caller_of, trace_of

logger = logging.getLogger("arriero.access")

_LONGEST_PATH = 200
PROBES = frozenset({"/health", LIVE, READY, METRICS})
"""What machines ask every few seconds; shown only at level debug, and never traced."""


def log_access(exchange: Exchange) -> None:
    """Tell how a request went.

    There is no word in it of what was asked or answered, unless the exchange has the body, and no header of the
    client's but the id.
    """
    scope, meter = exchange.scope, exchange.meter
    level = logging.DEBUG if meter.endpoint in PROBES else logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields: dict[str, Any] = {
        "id": exchange.id,
        "method": scope["method"],
        "route": meter.endpoint or path_of(scope),
        "status": exchange.outcome,
        "ms": round(exchange.seconds * 1000, 1),
    }
    if meter.model:
        fields["model"] = meter.model
        fields["prompt_tokens"] = meter.prompt_tokens
        fields["cached_tokens"] = meter.cached_tokens
        fields["completion_tokens"] = meter.completion_tokens
    if meter.first_token_at is not None:
        fields["first_token_ms"] = round((meter.first_token_at - exchange.began) * 1000, 1)
    if meter.error:
        fields["error"] = meter.error
    if key := caller_of(scope).id:
        fields["key"] = key
    if trace := trace_of(scope):
        fields["trace"] = trace[0][1].decode().split("-")[1]
    if scope.get("client"):
        fields["client"] = scope["client"][0]
    if exchange.body:
        fields["body"] = exchange.body.decode("utf-8", "replace")
    logger.log(level, "request", extra={"fields": fields})


def path_of(scope: MutableMapping[str, Any]) -> str:
    """What was asked for, percent-encoded as it came, and cut where it is long."""
    return str(scope.get("raw_path", b"")[:_LONGEST_PATH], "ascii", "backslashreplace")
