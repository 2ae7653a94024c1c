"""The routes of the gateway itself."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from arriero.gateway.metrics import METRICS, Metrics
from arriero.wire.headers import Application
from arriero.wire.scope import meter_of
from arriero.wire.sse import Receive, Send

LIVE, READY = "/health/live", "/health/ready"
"""Where machines ask how the process is: the first asks for no key, and tells nothing that is worth one."""


class MetricsRoute:
    """ASGI middleware that answers `GET /metrics`."""

    def __init__(self, app: Application, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer, or pass on what is for others."""
        if scope["type"] != "http" or scope["path"] != METRICS or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        meter_of(scope).endpoint = METRICS
        accept = next((value for name, value in scope["headers"] if name == b"accept"), b"")
        body, content_type = self._metrics.render(accept.decode("latin-1"))
        await answer(send, 200, body, content_type)


def at_root(root: str, app: Application) -> Application:
    """The same application below the path `root`, whether or not a proxy has taken that off the requests' paths."""
    if not root:
        return app

    async def below_root(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if path.startswith(root + "/"):
                path = path[len(root) :]
            scope = {**scope, "root_path": root, "path": path}
        await app(scope, receive, send)

    return below_root


async def answer(send: Send, status: int, body: bytes, content_type: str = "application/json", **headers: str) -> None:
    """Send a whole answer; `headers` have `_` for `-`."""
    lines = {"content-type": content_type, "content-length": str(len(body)), **headers}
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
