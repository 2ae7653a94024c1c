from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from arriero.core import EngineStats, Meter
from arriero.gateway.entrance import Exchange
from arriero.gateway.metrics import Metrics, ModelState, ServerState, UpstreamState

CHAT = "/v1/chat/completions"
Samples = dict[tuple[str, tuple[str, ...]], float]


def metrics(*models: ModelState) -> Metrics:
    return Metrics(lambda: ServerState(ready=True, num_running=2, lag=0.25, num_tasks=3, models=models))


def exchange(seconds: float = 4.0, *, status: int = 200, first: float | None = None, **meter: Any) -> Exchange:
    taken = Meter(endpoint=CHAT, first_token_at=None if first is None else 100 + first, **meter)
    return Exchange("id", {}, taken, 100.0, 100 + seconds, status, complete=True)


def read(text: str) -> Samples:
    """By name and the values of the labels, which are sorted by name."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def shown(metrics: Metrics) -> Samples:
    body, content_type = metrics.render("")
    assert content_type.startswith("text/plain")
    return read(body.decode())


def test_requests_are_counted_by_model_endpoint_and_status() -> None:
    counted = metrics()
    for each in (exchange(model="a"), exchange(model="a"), exchange(model="b", status=503, error="Overloaded")):
        counted.count(each)
    samples = shown(counted)
    assert samples["arriero_requests_total", (CHAT, "a", "200")] == 2
    assert samples["arriero_requests_total", (CHAT, "b", "503")] == 1
    assert samples["arriero_request_errors_total", (CHAT, "Overloaded", "b")] == 1


def test_tokens_and_times() -> None:
    counted = metrics()
    counted.count(
        exchange(4, first=1, model="a", prompt_tokens=10, cached_tokens=4, completion_tokens=16, queue_seconds=0.5)
    )
    counted.count(exchange(3, first=1, model="a", prompt_tokens=5, completion_tokens=1))
    samples = shown(counted)
    names = ("prompt_tokens_total", "cached_prompt_tokens_total", "generation_tokens_total")
    assert [samples[f"arriero_{name}", (CHAT, "a")] for name in names] == [15, 4, 17]
    assert samples["arriero_request_duration_seconds_sum", (CHAT, "a")] == 7
    assert samples["arriero_request_duration_seconds_bucket", (CHAT, "2.5", "a")] == 0
    assert samples["arriero_request_duration_seconds_bucket", (CHAT, "5.0", "a")] == 2
    assert samples["arriero_time_to_first_token_seconds_bucket", (CHAT, "1.0", "a")] == 2
    assert samples["arriero_time_to_first_token_seconds_bucket", (CHAT, "+Inf", "a")] == 2
    assert samples["arriero_queue_seconds_count", (CHAT, "a")] == 1
    assert samples["arriero_queue_seconds_bucket", (CHAT, "0.5", "a")] == 1
    assert samples["arriero_time_per_output_token_seconds_count", (CHAT, "a")] == 1
    assert samples["arriero_time_per_output_token_seconds_sum", (CHAT, "a")] == pytest.approx(0.2)


def test_models_that_are_not_there_are_one_label() -> None:
    counted = metrics()
    for _ in range(3):
        counted.count(exchange(status=404, error="UnknownModel"))
    samples = shown(counted)
    assert samples["arriero_requests_total", (CHAT, "unknown", "404")] == 3
    assert ("arriero_prompt_tokens_total", (CHAT, "unknown")) not in samples


def test_how_the_server_and_its_engines_are() -> None:
    stats = EngineStats(waiting=1, running=2, num_slots=3, steps=4, prompt_tokens=5, generated_tokens=6, kept_tokens=7)
    ready = ModelState(name="a", state="ready", stats=stats, num_bytes=2**30)
    samples = shown(metrics(ready, ModelState(name="b", state="failed")))
    assert samples["arriero_model_memory_bytes", ("a",)] == 2**30
    assert ("arriero_model_memory_bytes", ("b",)) not in samples
    assert samples["arriero_ready", ()] == 1
    assert samples["arriero_requests_running", ()] == 2
    assert samples["arriero_event_loop_lag_seconds", ()] == 0.25
    assert samples["arriero_event_loop_tasks", ()] == 3
    assert samples["arriero_model_state", ("a", "ready")] == 1
    assert samples["arriero_model_state", ("a", "failed")] == 0
    assert samples["arriero_model_state", ("b", "failed")] == 1
    assert samples["arriero_requests_waiting", ("a",)] == 1
    assert samples["arriero_slots_used", ("a",)] == 2
    assert samples["arriero_slots", ("a",)] == 3
    assert samples["arriero_engine_steps_total", ("a",)] == 4
    assert samples["arriero_engine_prompt_tokens_total", ("a",)] == 5
    assert samples["arriero_engine_generation_tokens_total", ("a",)] == 6
    assert samples["arriero_kept_prefix_tokens", ("a",)] == 7
    assert samples["arriero_engine_restarts_total", ("a",)] == 0
    assert samples["process_open_fds", ()] > 0


def test_how_other_servers_are() -> None:
    state = UpstreamState(model="m", server="far:80", circuit="open", running=1, requests=7, failures=5)
    told = Metrics(lambda: ServerState(ready=True, num_running=1, lag=0, num_tasks=1, models=(), upstreams=[state]))
    samples = shown(told)
    assert samples["arriero_upstream_requests_total", ("m", "far:80")] == 7
    assert samples["arriero_upstream_failures_total", ("m", "far:80")] == 5
    assert samples["arriero_upstream_requests_running", ("m", "far:80")] == 1
    circuits = [samples["arriero_upstream_circuit", ("m", "far:80", each)] for each in ("closed", "half-open", "open")]
    assert circuits == [0, 0, 1]


def test_openmetrics_is_spoken_where_it_is_asked_for() -> None:
    body, content_type = metrics().render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


async def test_requests_of_every_kind_are_found_at_the_route(serve: Callable[..., Awaitable[Any]]) -> None:
    served = await serve()
    assert (await served.chat("hello")).status_code == 200
    await served.chat("hello", stream=True)
    assert (await served.post("/v1/embeddings", input="hello")).status_code == 200
    assert (await served.chat("hello", model="../../etc/passwd")).status_code == 404
    assert (await served.chat("hello", n=-1)).status_code == 400
    for path in ("/nowhere", "/v1/models", "/v1/models/scripted", "/v1/models/a/b"):
        await served.client.get(path)
    answer = await served.client.get("/metrics")
    samples = read(answer.text)
    assert answer.headers["content-type"].startswith("text/plain")
    assert samples["arriero_requests_total", (CHAT, "scripted", "200")] == 2
    assert samples["arriero_requests_total", (CHAT, "unknown", "404")] == 1
    assert samples["arriero_requests_total", (CHAT, "", "400")] == 1
    assert samples["arriero_requests_total", ("", "", "404")] == 1
    assert samples["arriero_requests_total", ("/v1/models", "", "200")] == 1
    assert samples["arriero_requests_total", ("/v1/embeddings", "scripted", "200")] == 1
    assert samples["arriero_generation_tokens_total", (CHAT, "scripted")] == 2 * len("hello!")
    assert samples["arriero_time_to_first_token_seconds_count", (CHAT, "scripted")] == 2
    assert samples["arriero_queue_seconds_count", (CHAT, "scripted")] == 2
    assert samples["arriero_queue_seconds_count", ("/v1/embeddings", "scripted")] == 1
    assert samples["arriero_slots", ("scripted",)] == 64
    assert "passwd" not in answer.text
    again = read((await served.client.get("/metrics")).text)
    assert again["arriero_requests_total", ("/metrics", "", "200")] == 1
