"""Spans as OpenTelemetry's SDK keeps them, and as a receiver gets them over HTTP."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from arriero.app.tracing import open_tracing
from arriero.app.web import create_app
from arriero.backends.upstream import Upstream
from arriero.config import Settings
from arriero.errors import ConfigError
from arriero.gateway import tracing as tracing_module
from arriero.gateway.tracing import Tracing
from arriero.upstream_tables import UpstreamTable
from backends.conftest import Asked, faulty

assert faulty  # the fixture

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "the secret of the mule"


class Traced:
    """A server whose spans are kept."""

    def __init__(self, app: Callable[[Tracing], Any], **options: Any) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False, **options)
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        transport = httpx.ASGITransport(app(Tracing(provider)), raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://arriero")

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._kept.get_finished_spans()

    @property
    def span(self) -> ReadableSpan:
        (span,) = self.spans
        return span

    async def post(self, path: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        return await self.client.post(path, json=body, headers=headers)

    async def chat(self, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        body = {"model": "scripted", "messages": [{"role": "user", "content": SECRET}], **more}
        return await self.post("/v1/chat/completions", headers, **body)


@pytest.fixture
async def traced(serve: Callable[..., Awaitable[Any]]) -> Traced:
    served = await serve()
    return Traced(lambda tracing: create_app(served.settings, served.model, tracing=tracing))


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_has_a_span(stream: bool, traced: Traced) -> None:
    answer = await traced.chat({"x-request-id": "req-42"}, stream=stream)
    assert answer.status_code == 200
    span, found = traced.span, attributes(traced.span)
    if not stream:
        usage = answer.json()["usage"]
        assert found["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert found.pop("gen_ai.usage.input_tokens") > len(SECRET)
    assert (span.name, span.kind, span.parent) == ("POST /v1/chat/completions", SpanKind.SERVER, None)
    assert span.status.status_code == StatusCode.UNSET
    assert found.pop("gen_ai.response.time_to_first_chunk") > 0
    assert found.pop("arriero.queue.seconds") >= 0
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "client.address": "127.0.0.1",
        "arriero.request.id": "req-42",
        "gen_ai.provider.name": "arriero",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "scripted",
        "gen_ai.usage.output_tokens": len(SECRET) + 1,
        "gen_ai.usage.cache_read.input_tokens": 0,
    }
    assert [event.name for event in span.events] == ["request.queued", "request.admitted", "first_token"]
    moments = [span.start_time, *(event.timestamp for event in span.events), span.end_time]
    assert moments == sorted(moments)
    assert SECRET not in span.to_json()


async def test_a_trace_goes_on_where_somebody_began_it(traced: Traced) -> None:
    await traced.chat({"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b"})
    context, parent = traced.span.context, traced.span.parent
    assert context is not None
    assert parent is not None
    assert (f"{context.trace_id:032x}", f"{parent.span_id:016x}", parent.is_remote) == (TRACE, PARENT, True)
    assert context.trace_state.to_header() == "a=b"


@pytest.mark.parametrize("wrong", ["", "00-0-0-01", f"00-{'0' * 32}-{PARENT}-01", "ff" * 4000, "é"])
async def test_a_malformed_trace_is_none(wrong: str, traced: Traced) -> None:
    assert (await traced.chat({"traceparent": wrong.encode("latin-1")})).status_code == 200  # type: ignore[dict-item]
    assert traced.span.parent is None


async def test_who_began_a_trace_decides_whether_it_is_kept(traced: Traced) -> None:
    await traced.chat({"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert traced.spans == ()


async def test_what_goes_wrong_is_told_without_words(traced: Traced) -> None:
    assert (await traced.chat(n=-1)).status_code == 400
    assert (await traced.chat(model=SECRET)).status_code == 404
    assert (await traced.client.get(f"/{'x' * 1000}")).status_code == 404
    refused, unknown, nowhere = traced.spans
    assert attributes(refused)["error.type"] == "InvalidRequest"
    assert attributes(unknown)["error.type"] == "UnknownModel"
    assert nowhere.name == "GET"
    assert len(attributes(nowhere)["url.path"]) == 200
    assert all(span.status.status_code == StatusCode.UNSET for span in traced.spans)
    assert SECRET not in "".join(span.to_json() for span in traced.spans)


async def test_an_answer_that_is_not_in_time_is_an_error(serve: Callable[..., Awaitable[Any]]) -> None:
    served = await serve(pace=10)
    traced = Traced(lambda tracing: create_app(served.settings, served.model, tracing=tracing))
    assert (await traced.chat(deadline=0.05)).status_code == 504
    assert (await traced.chat(deadline=0.3, stream=True)).status_code == 200
    for span in traced.spans:
        assert span.status.status_code == StatusCode.ERROR
        assert attributes(span)["error.type"] == "DeadlineExceeded"


async def test_probes_have_none(traced: Traced) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/metrics"):
        await traced.client.get(path)
    assert traced.spans == ()


async def test_the_server_behind_goes_on_with_the_trace(faulty: Callable[..., Awaitable[Any]]) -> None:
    async def well(asked: Asked) -> None:
        asked.answer()

    behind = await faulty(well)
    upstream = Upstream(UpstreamTable(name="m", upstream=behind.url), {})  # type: ignore[arg-type]
    for options, flags in (({}, "01"), ({"sampler": ALWAYS_OFF}, "00")):
        traced = Traced(
            lambda tracing: create_app(Settings(), None, upstreams=[upstream], tracing=tracing),
            **options,  # type: ignore[arg-type]
        )
        given = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b"}
        assert (await traced.chat(given, model="m")).status_code == 200
        headers = behind.asked[-1].headers
        version, trace, span, flag = headers["traceparent"].split("-")
        assert (version, trace, flag) == ("00", TRACE, flags)
        assert span != PARENT
        assert headers["tracestate"] == "a=b"
        if traced.spans:
            assert f"{traced.span.context.span_id:016x}" == span  # type: ignore[union-attr]
    await upstream.close()


async def test_lines_of_the_log_name_the_trace(traced: Traced, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "arriero.access"):
        await traced.chat({"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert caplog.records[-1].fields["trace"] == TRACE  # type: ignore[attr-defined]


# Over HTTP


class Receiver(HTTPServer):
    """An OTLP receiver."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Posted)
        self.asked: list[tuple[str, dict[str, str], ExportTraceServiceRequest]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Posted(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append((self.path, headers, ExportTraceServiceRequest.FromString(data)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_a_receiver_gets_the_spans(
    receiver: Receiver, serve: Callable[..., Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20collector")
    served = await serve()
    tracing = open_tracing(served.settings.model_copy(update={"trace_endpoint": f"{receiver.url}/"}))
    assert tracing
    app = create_app(served.settings, served.model, tracing=tracing)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://arriero") as client:
        for _ in range(3):
            await client.post("/v1/completions", json={"model": "scripted", "prompt": SECRET})
    await tracing.close()
    (path, headers, request), *more = receiver.asked
    assert (path, headers["content-type"], more) == ("/v1/traces", "application/x-protobuf", [])
    assert headers["authorization"] == "Bearer collector"
    (resource,) = request.resource_spans
    about = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert about["service.name"] == "arriero"
    spans = resource.scope_spans[0].spans
    assert [span.name for span in spans] == ["POST /v1/completions"] * 3
    assert len({span.trace_id for span in spans}) == 3
    assert SECRET.encode() not in request.SerializeToString()


async def test_a_receiver_that_is_not_there_holds_nobody_up(
    nowhere_url: str, serve: Callable[..., Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing_module, "_GRACE", 0.1)
    served = await serve()
    tracing = open_tracing(served.settings.model_copy(update={"trace_endpoint": nowhere_url, "trace_share": 1.0}))
    assert tracing
    app = create_app(served.settings, served.model, tracing=tracing)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://arriero") as client:
        answer = await client.post("/v1/completions", json={"model": "scripted", "prompt": "a"})
        assert answer.status_code == 200
    async with asyncio.timeout(5):
        await tracing.close()


@pytest.fixture
def nowhere_url(receiver: Receiver) -> str:
    """An address that takes connections and answers nothing of use."""
    return receiver.url.replace("http://", "https://")


# Settings


def test_without_a_receiver_there_are_none() -> None:
    assert open_tracing(Settings()) is None


def test_without_opentelemetry_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "arriero.gateway.tracing")
    monkeypatch.delattr(importlib.import_module("arriero.gateway"), "tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"arriero\[otel\]"):
        open_tracing(Settings(trace_endpoint="http://127.0.0.1:4318"))
