"""What travels with a request beside its bytes: entries of the ASGI scope, and its id, which the gateway makes."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

from arriero.core import Caller, Meter
from arriero.errors import EngineDied

_METER = "arriero.meter"
_CALLER = "arriero.caller"
_TRACE = "arriero.trace"
_LOST = "arriero.lost"
_EVERYBODY = Caller()

REQUEST_ID: ContextVar[str] = ContextVar("request id", default="")
"""The id of the request that the running task is about, for log lines and errors; empty: it is about none."""


def meter_of(scope: MutableMapping[str, Any]) -> Meter:
    """The request's meter; a new one where nobody has put one there."""
    meter: Meter | None = scope.get(_METER)
    if meter is None:
        meter = scope[_METER] = Meter()
    return meter


def caller_of(scope: MutableMapping[str, Any]) -> Caller:
    """Who asks; somebody who may do everything where nobody stands at the door."""
    caller: Caller = scope.get(_CALLER, _EVERYBODY)
    return caller


def set_caller(scope: MutableMapping[str, Any], caller: Caller) -> None:
    """Write down who asks."""
    scope[_CALLER] = caller


def trace_of(scope: MutableMapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """The headers by which another server goes on with the request's trace, `traceparent` first; none: it has none."""
    headers: list[tuple[bytes, bytes]] = scope.get(_TRACE, [])
    return headers


def set_trace(scope: MutableMapping[str, Any], headers: list[tuple[bytes, bytes]]) -> None:
    """Write them down."""
    scope[_TRACE] = headers


def lost_of(scope: MutableMapping[str, Any]) -> asyncio.Future[None] | None:
    """What is done when the request's connection is lost; None where the server does not tell."""
    lost: asyncio.Future[None] | None = scope.get(_LOST)
    return lost


def set_lost(scope: MutableMapping[str, Any], lost: asyncio.Future[None]) -> None:
    """Promise to tell when the connection is lost."""
    scope[_LOST] = lost


def note_error(scope: MutableMapping[str, Any], error: Exception) -> None:
    """Write what went wrong on the request's meter; what was refused before it began has used nothing."""
    meter = meter_of(scope)
    meter.error = type(error).__name__
    if not meter.completion_tokens and not isinstance(error, EngineDied):
        meter.prompt_tokens = 0
