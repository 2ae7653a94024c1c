"""Spans for OpenTelemetry: one for each request, made of what its meter says when it is over.

Attributes follow OpenTelemetry's semantic conventions for HTTP servers and, as far as they go, for generative AI. There
is no word in them of what was asked or answered.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from arriero import __version__
from arriero.gateway.access import PROBES, path_of
from arriero.gateway.entrance import Exchange, Watcher
from arriero.wire.scope import caller_of, set_trace

_CONTEXT = (b"traceparent", b"tracestate")
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""What the conventions call endpoints; they have no names for the others."""
_GRACE = 3.0
"""Seconds in which the last spans have to be on their way when the server stops."""


class Tracing:
    """Has a span for each request that goes on the caller's trace (W3C Trace Context), or begins one."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("arriero", __version__)
        self._context = TraceContextTextMapPropagator()

    def begin(self, exchange: Exchange) -> Watcher:
        """Begin a request's span, and leave in the scope how others go on from it; ends it when it is called."""
        scope = exchange.scope
        given = {
            name.decode(): value.decode("latin-1") for name, value in reversed(scope["headers"]) if name in _CONTEXT
        }
        parent = self._context.extract(given, context=Context())
        span = self._tracer.start_span(scope["method"], parent, SpanKind.SERVER)
        passed: dict[str, str] = {}
        self._context.inject(passed, set_span_in_context(span, Context()))
        set_trace(scope, [(name.encode(), value.encode()) for name, value in passed.items()])

        def end(ended: Exchange) -> None:
            if ended.meter.endpoint not in PROBES:  # a span that is never ended is never sent
                _end(span, ended)

        return end

    async def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        deadline = time.monotonic() + _GRACE
        while sending.is_alive() and time.monotonic() < deadline:  # noqa: ASYNC110  # a thread announces nothing here
            await asyncio.sleep(0.02)


def open_tracing(endpoint: str, share: float) -> Tracing:
    """Spans go to the OTLP receiver at `endpoint`, its address without `/v1/traces`, over HTTP with protobuf.

    `share` is of the traces that begin here, from 0 to 1; others go on as whoever began them has decided. What
    OpenTelemetry's own variables say of headers, certificates, batches and the service's name counts too.
    """
    named = OTEL_SERVICE_NAME in os.environ or "service.name=" in os.environ.get(OTEL_RESOURCE_ATTRIBUTES, "")
    about = {"service.version": __version__} | ({} if named else {"service.name": "arriero"})
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(share)), resource=Resource.create(about), shutdown_on_exit=False
    )
    exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/").removesuffix("/v1/traces") + "/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


def _end(span: Span, exchange: Exchange) -> None:
    if not span.is_recording():
        return
    meter, now = exchange.meter, time.time_ns()

    def at(moment: float) -> int:
        return now - int((exchange.ended - moment) * 1e9)

    if meter.endpoint:
        span.update_name(f"{exchange.scope['method']} {meter.endpoint}")
    span.set_attributes(_http(exchange))
    span.set_attributes(_generation(exchange))
    if exchange.outcome >= 500 or (meter.error and exchange.status < 400):
        span.set_status(StatusCode.ERROR)
    if meter.queued_at is not None:
        span.add_event("request.queued", timestamp=at(meter.queued_at))
        if meter.queue_seconds is not None:
            span.add_event("request.admitted", timestamp=at(meter.queued_at + meter.queue_seconds))
    if meter.first_token_at is not None:
        span.add_event("first_token", timestamp=at(meter.first_token_at))
    span.end(now)


def _http(exchange: Exchange) -> dict[str, AttributeValue]:
    scope, meter = exchange.scope, exchange.meter
    attributes: dict[str, AttributeValue] = {
        "http.request.method": scope["method"],
        "url.scheme": scope.get("scheme", "http"),
        "url.path": path_of(scope),
        "http.response.status_code": exchange.outcome,
        "arriero.request.id": exchange.id,
    }
    if meter.endpoint:
        attributes["http.route"] = meter.endpoint
    if meter.error or exchange.outcome >= 400:
        attributes["error.type"] = meter.error or str(exchange.outcome)
    if scope.get("client"):
        attributes["client.address"] = scope["client"][0]
    if key := caller_of(scope).id:
        attributes["arriero.key.id"] = key
    return attributes


def _generation(exchange: Exchange) -> dict[str, AttributeValue]:
    meter = exchange.meter
    if not meter.model:
        return {}
    attributes: dict[str, AttributeValue] = {
        "gen_ai.provider.name": "arriero",
        "gen_ai.request.model": meter.model,
        "gen_ai.usage.input_tokens": meter.prompt_tokens,
        "gen_ai.usage.output_tokens": meter.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": meter.cached_tokens,
    }
    if operation := _OPERATIONS.get(meter.endpoint):
        attributes["gen_ai.operation.name"] = operation
    if meter.first_token_at is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = meter.first_token_at - exchange.began
    if meter.queue_seconds is not None:
        attributes["arriero.queue.seconds"] = meter.queue_seconds
    return attributes
