"""Traces, where the settings ask for them; apart because nothing else needs OpenTelemetry, nor time to look for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arriero.config import Settings
from arriero.errors import ConfigError

if TYPE_CHECKING:
    from arriero.gateway.tracing import Tracing


def open_tracing(settings: Settings) -> Tracing | None:
    """Traces, where the settings name a receiver; raises `ConfigError` where OpenTelemetry is not installed."""
    if settings.trace_endpoint is None:
        return None
    try:
        from arriero.gateway import tracing
    except ModuleNotFoundError as error:
        raise ConfigError(f"--trace-endpoint needs {error.name}: pip install 'arriero[otel]'") from None
    return tracing.open_tracing(settings.trace_endpoint, settings.trace_share)
