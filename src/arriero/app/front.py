"""The server's outside, which is there before any model is: it answers for the server while models load and stop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

from arriero.backends.upstream import Upstream
from arriero.config import Settings
from arriero.core import EngineStats
from arriero.errors import EngineDied
from arriero.gateway.access import log_access
from arriero.gateway.door import Door
from arriero.gateway.entrance import Entrance
from arriero.gateway.gate import Gate
from arriero.gateway.limits import LIMIT_HEADERS
from arriero.gateway.metrics import Metrics, ModelState, ServerState, UpstreamState
from arriero.gateway.pulse import Progress, Pulse
from arriero.gateway.routes import MetricsRoute, at_root
from arriero.gateway.usage import UsageRoute
from arriero.pool import Entry, Pool
from arriero.store.ledger import Ledger
from arriero.wire.headers import Application

if TYPE_CHECKING:
    from arriero.gateway.tracing import Tracing


class Front:
    """Ids, logs, metrics, health, keys and usage around an API that comes later."""

    def __init__(self, settings: Settings, ledger: Ledger, *, closed: bool, tracing: Tracing | None = None) -> None:
        """`ledger` is started and closed by the caller; with `closed` a key is asked for even while there are none."""
        self._tracing = tracing
        self._ledger = ledger
        self._pool = Pool([])
        self._pulse = Pulse()
        self._progress = Progress(settings.stall_limit)
        self._metrics = Metrics(self._state)
        self._gate = Gate(self._fault, lambda: ledger.problem, patience=settings.load_wait)
        self._door = Door(self._gate, ledger, api_key=settings.api_key, closed=closed, no_auth=settings.no_auth)
        self._entrance = Entrance(
            at_root(settings.root_path or "", _sharing(settings.cors_origins, self._door)),
            [self._metrics.count, log_access],
            keep_bodies=settings.log_prompts,
            begin=tracing.begin if tracing else None,
        )

    @property
    def application(self) -> Application:
        """What the server serves, from the first moment on."""
        return self._entrance

    @property
    def asks_for_keys(self) -> bool:
        """Whether requests need a key."""
        return self._door.asks_for_keys

    def start(self) -> None:
        """Begin to watch the running event loop."""
        self._pulse.start()

    def open(self, pool: Pool, api: Application) -> None:
        """Let requests in to `api`, which answers with the models of `pool`."""
        self._pool = pool
        self._gate.open(MetricsRoute(UsageRoute(api, self._ledger), self._metrics))

    async def close(self, grace: float) -> None:
        """Turn new requests away, and wait for those that are being answered, for `grace` seconds at most."""
        await self._gate.close(grace)
        self._pulse.stop()
        if self._tracing:
            await self._tracing.close()

    def _models(self) -> list[ModelState]:
        return [_state(each) for each in self._pool.entries]

    def _state(self) -> ServerState:
        return ServerState(
            ready=self._gate.ready,
            num_running=self._entrance.num_running,
            lag=self._pulse.lag,
            num_tasks=len(asyncio.all_tasks()),
            models=self._models(),
            upstreams=[state for each in self._pool.upstreams for state in _upstream_states(each)],
        )

    def _fault(self) -> str | None:
        models = self._models()
        if any(each.is_fixed and each.state == "failed" for each in self._pool.entries):  # others are loaded again
            return "an engine failed"
        if self._progress.stalled(models):
            return "an engine has work and makes no progress"
        return "the event loop is too slow" if self._pulse.is_late else None


def _state(entry: Entry) -> ModelState:
    """How a model is; its adapters are part of it."""
    state = {"restarting": "loading", "unloading": "unloaded"}.get(entry.state, entry.state)
    num_bytes = None if entry.is_fixed else entry.num_bytes if entry.takes_memory else 0
    try:
        stats = entry.model.engine.stats() if entry.model else EngineStats()
    except EngineDied:
        return ModelState(name=entry.name, state="failed", num_bytes=num_bytes)
    return ModelState(name=entry.name, state=state, stats=stats, num_bytes=num_bytes)


def _upstream_states(upstream: Upstream) -> Iterator[UpstreamState]:
    places = [each.place for each in upstream.endpoints]
    for number, each in enumerate(upstream.endpoints, 1):
        yield UpstreamState(
            model=upstream.name,
            server=each.place if places.count(each.place) == 1 else f"{each.place}#{number}",
            circuit=each.circuit.state,
            running=each.num_outstanding,
            requests=each.num_asked,
            failures=each.num_failed,
        )


def _sharing(origins: str | None, app: Application) -> Application:
    """The same application for web pages of these origins, too."""
    if origins is None:
        return app
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(
        app,
        allow_origins=origins.split(","),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "openai-processing-ms", "x-arriero-ignored", "retry-after", *LIMIT_HEADERS],
        max_age=3600,
    )
