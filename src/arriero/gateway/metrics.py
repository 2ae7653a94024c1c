"""`GET /metrics`: what Prometheus is told.

Requests are counted on plain records and written out only when somebody asks, so counting one takes microseconds.
Names follow Prometheus' conventions: base units, `_total`, and one prefix. Labels are bounded: models are the
server's own names (`unknown` for those that it does not have), endpoints are routes, errors are classes of ours,
servers those of the configuration. Keys, ids and clients are no labels.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from arriero import __version__
from arriero.core import EngineStats
from arriero.gateway.entrance import Exchange

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric

METRICS = "/metrics"
UNKNOWN = "unknown"
"""The model of requests for one that this server does not have."""
STATES = ("unloaded", "loading", "ready", "failed")
"""How a model can be."""
CIRCUITS = ("closed", "half-open", "open")
"""Whether requests go to another server: all, one that tries, none."""

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
"""Upper bounds for requests and first tokens: from a scripted reply to a long answer on a small machine."""
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
"""Upper bounds for the time between two tokens."""


class Histogram:
    """How many values lay below which bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def write(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        """Write it out with the bounds as Prometheus wants them: how many values lay at or below each."""
        total, buckets = 0, []
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric(labels, buckets, sum_value=self._sum)


@dataclass(slots=True)
class _Series:
    """What the requests for one model at one endpoint came to."""

    by_status: Counter[int] = field(default_factory=Counter)
    by_error: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    duration: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    first_token: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    queue: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    each_token: Histogram = field(default_factory=lambda: Histogram(TOKEN_SECONDS))

    def count(self, exchange: Exchange) -> None:
        meter = exchange.meter
        self.by_status[exchange.outcome] += 1
        if meter.error:
            self.by_error[meter.error] += 1
        self.prompt_tokens += meter.prompt_tokens
        self.cached_tokens += meter.cached_tokens
        self.completion_tokens += meter.completion_tokens
        self.duration.add(exchange.seconds)
        if meter.queue_seconds is not None:
            self.queue.add(meter.queue_seconds)
        if meter.first_token_at is not None:
            self.first_token.add(meter.first_token_at - exchange.began)
            if meter.completion_tokens > 1:
                self.each_token.add((exchange.ended - meter.first_token_at) / (meter.completion_tokens - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """A model as it is now."""

    name: str
    state: str
    """One of `STATES`."""
    stats: EngineStats = field(default_factory=EngineStats)
    num_bytes: int | None = None
    """That it takes; None where nobody measures it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamState:
    """Another server, as far as it answers for one model, as it is now. Counts are since the start."""

    model: str
    server: str
    """Host and port; the number of its address after a #, where one model has several there."""
    circuit: str
    """One of `CIRCUITS`."""
    running: int
    requests: int
    failures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """The server as it is now."""

    ready: bool
    num_running: int
    """Requests that are being answered."""
    lag: float
    """Seconds by which the event loop is late."""
    num_tasks: int
    """Of the event loop."""
    models: Iterable[ModelState]
    upstreams: Iterable[UpstreamState] = ()


class Metrics:
    """Counts exchanges, and tells what was counted together with how the server is."""

    def __init__(self, state: Callable[[], ServerState]) -> None:
        self._state = state
        self._series: dict[tuple[str, str], _Series] = {}
        self._registry: CollectorRegistry | None = None

    def count(self, exchange: Exchange) -> None:
        """Take an exchange that is over."""
        meter = exchange.meter
        model = meter.model or (UNKNOWN if meter.error == "UnknownModel" else "")
        series = self._series.get((model, meter.endpoint))
        if series is None:
            series = self._series[model, meter.endpoint] = _Series()
        series.count(exchange)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Everything, in the format that the header `accept` asks for: (body, content type)."""
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.exposition import choose_encoder

        if self._registry is None:
            self._registry = CollectorRegistry()
            ProcessCollector(registry=self._registry)
            self._registry.register(self)
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """Every metric of ours, for prometheus-client."""
        yield from self._requests()
        state = self._state()
        yield from _server(state)
        yield from _upstreams(state.upstreams)

    def _requests(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import HistogramMetricFamily

        labels = ["model", "endpoint"]
        requests = _counter(
            "requests", "Requests that are over; 499: the client left before the end.", [*labels, "status"]
        )
        errors = _counter(
            "request_errors", "Requests that went wrong, before the answer or amid it.", [*labels, "error"]
        )
        prompt = _counter("prompt_tokens", "Prompt tokens of requests.", labels)
        cached = _counter("cached_prompt_tokens", "Prompt tokens that a kept prefix saved from computation.", labels)
        completion = _counter("generation_tokens", "Tokens of answers.", labels)
        durations = HistogramMetricFamily(
            "arriero_request_duration_seconds", "From a request's head to its answer's last byte.", labels=labels
        )
        firsts = HistogramMetricFamily(
            "arriero_time_to_first_token_seconds", "From a request's head to its answer's first token.", labels=labels
        )
        queues = HistogramMetricFamily(
            "arriero_queue_seconds", "For how long what was answered had waited for the engine.", labels=labels
        )
        eaches = HistogramMetricFamily(
            "arriero_time_per_output_token_seconds",
            "Mean time between an answer's tokens, a value for each request.",
            labels=labels,
        )
        for (model, endpoint), series in self._series.items():
            values = [model, endpoint]
            for status, number in series.by_status.items():
                requests.add_metric([*values, str(status)], number)
            for error, number in series.by_error.items():
                errors.add_metric([*values, error], number)
            series.duration.write(durations, values)
            if not model or model == UNKNOWN:
                continue  # these have no tokens
            prompt.add_metric(values, series.prompt_tokens)
            cached.add_metric(values, series.cached_tokens)
            completion.add_metric(values, series.completion_tokens)
            series.first_token.write(firsts, values)
            series.queue.write(queues, values)
            series.each_token.write(eaches, values)
        yield from (requests, errors, prompt, cached, completion, durations, firsts, queues, eaches)


_ENGINE_COUNTERS = {
    "steps": ("engine_steps", "Steps that the model computed."),
    "prompt_tokens": ("engine_prompt_tokens", "Prompt tokens that the model computed."),
    "generated_tokens": ("engine_generation_tokens", "Tokens that the model generated."),
    "restarts": ("engine_restarts", "How often the model's process was started again."),
}
_ENGINE_GAUGES = {
    "waiting": ("requests_waiting", "Requests in the engine's queue."),
    "running": ("slots_used", "Answers that are being generated."),
    "num_slots": ("slots", "Answers that can be generated at the same time."),
    "reserved_tokens": ("reserved_tokens", "Tokens of the key/value memory that are set aside for answers."),
    "kept_tokens": ("kept_prefix_tokens", "Prompt tokens of ended requests that are kept for others."),
}


def _server(server: ServerState) -> Iterator[Metric]:
    from prometheus_client.metrics_core import GaugeMetricFamily

    yield GaugeMetricFamily("arriero_ready", "Whether new requests are taken.", value=float(server.ready))
    yield GaugeMetricFamily("arriero_requests_running", "Requests that are being answered.", value=server.num_running)
    yield GaugeMetricFamily("arriero_event_loop_lag_seconds", "By how much the event loop is late.", value=server.lag)
    yield GaugeMetricFamily("arriero_event_loop_tasks", "Tasks of the event loop.", value=server.num_tasks)
    build = GaugeMetricFamily("arriero_build_info", "1; the version is the label.", labels=["version"])
    build.add_metric([__version__], 1)
    yield build
    states = GaugeMetricFamily("arriero_model_state", "1 for the state that a model is in.", labels=["model", "state"])
    memory = GaugeMetricFamily(
        "arriero_model_memory_bytes", "Memory that a model of several takes, as last measured.", labels=["model"]
    )
    models = list(server.models)
    for model in models:
        for state in STATES:
            states.add_metric([model.name, state], float(state == model.state))
        if model.num_bytes is not None:
            memory.add_metric([model.name], model.num_bytes)
    yield from (states, memory)
    families: dict[str, Metric] = {key: _counter(*named, ["model"]) for key, named in _ENGINE_COUNTERS.items()}
    for key, (name, help) in _ENGINE_GAUGES.items():
        families[key] = GaugeMetricFamily(f"arriero_{name}", help, labels=["model"])
    for model in models:
        values = asdict(model.stats)
        for key, family in families.items():
            family.add_metric([model.name], values[key])  # type: ignore[attr-defined]
    yield from families.values()


def _upstreams(upstreams: Iterable[UpstreamState]) -> Iterator[Metric]:
    from prometheus_client.metrics_core import GaugeMetricFamily

    labels = ["model", "server"]
    requests = _counter("upstream_requests", "Requests that were sent to another server.", labels)
    failures = _counter("upstream_failures", "Those that it did not answer, or not to the end.", labels)
    running = GaugeMetricFamily("arriero_upstream_requests_running", "Those that it answers now.", labels=labels)
    circuits = GaugeMetricFamily(
        "arriero_upstream_circuit", "1 for the state of a server's circuit.", labels=[*labels, "state"]
    )
    for each in upstreams:
        values = [each.model, each.server]
        requests.add_metric(values, each.requests)
        failures.add_metric(values, each.failures)
        running.add_metric(values, each.running)
        for state in CIRCUITS:
            circuits.add_metric([*values, state], float(state == each.circuit))
    yield from (requests, failures, running, circuits)


def _counter(name: str, help: str, labels: list[str]) -> CounterMetricFamily:
    from prometheus_client.metrics_core import CounterMetricFamily

    return CounterMetricFamily(f"arriero_{name}", help, labels=labels)
