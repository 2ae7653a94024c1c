"""A server with keys, whose store the test holds."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from arriero.api.application import Api
from arriero.api.routes import MODEL
from arriero.app.web import create_app
from arriero.core import Engine
from arriero.gateway.door import Door
from arriero.store import keys
from arriero.store.database import open_database
from arriero.store.ledger import Ledger
from conftest import Served


def unwrapped(app: Any, kind: type[Any]) -> Any:
    """The part of an application that is of this kind."""
    while not isinstance(app, kind):
        app = app._app
    return app


@dataclass
class Guarded:
    """A server that asks for keys."""

    served: Served
    ledger: Ledger
    path: Path
    app: Any
    client: httpx.AsyncClient
    texts: dict[str, str] = field(default_factory=dict)
    """Keys by their names."""

    @property
    def model(self) -> str:
        return self.served.model.name

    def key(self, name: str, **scope: Any) -> keys.Key:
        """Make a key, and have the server know it."""
        key, self.texts[name] = keys.new_key(name, **scope)
        self.write(lambda connection: keys.insert(connection, key))
        return key

    def write(self, change: Callable[[Any], object]) -> None:
        with closing(open_database(self.path)) as connection:
            change(connection)
        self.ledger._look()

    async def ask(self, name: str | None, method: str = "GET", path: str = "/v1/models", **more: Any) -> httpx.Response:
        headers = {} if name is None else {"authorization": f"Bearer {self.texts[name]}"}
        return await self.client.request(method, path, headers=headers, **more)

    async def chat(self, name: str, text: str = "Hello", **more: Any) -> httpx.Response:
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], **more}
        return await self.ask(name, "POST", "/v1/chat/completions", json=body)

    def routes(self) -> Iterator[tuple[str, str]]:
        """Every method and path that the API answers, with a value where a name stands."""
        for route in unwrapped(self.app, Api).table.routes:
            yield route.method, route.path.replace(MODEL, self.model)

    def door(self) -> Door:
        """The part of the application that asks for keys."""
        return unwrapped(self.app, Door)


@pytest.fixture
async def guard(serve: Callable[..., Awaitable[Served]], tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start a server; takes any setting, `closed`, and an `engine`, started, in the place of its own."""
    async with AsyncExitStack() as stack:

        async def start(
            *,
            closed: bool = False,
            clock: Callable[[], float] = time.time,
            engine: Engine | None = None,
            **settings: Any,
        ) -> Guarded:
            served = await serve(**settings)
            if engine:
                served = replace(served, model=replace(served.model, engine=engine))
            path = tmp_path / "arriero.db"
            ledger = Ledger(path, clock=clock)  # not started: a test tells it when to look
            app = create_app(served.settings, served.model, ledger, closed=closed)
            stack.callback(ledger.close)
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://arriero"))
            return Guarded(served, ledger, path, app, client)

        yield start


@pytest.fixture
async def guarded(guard: Callable[..., Awaitable[Guarded]]) -> Guarded:
    """A server with one key that may do everything but administer."""
    server = await guard()
    server.key("alice")
    return server
