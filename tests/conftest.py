"""Servers of the scripted engine: in this process for requests, on a port of their own for clients."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from huggingface_hub import close_session, constants

from arriero.api.application import application
from arriero.api.generation import Delivery
from arriero.app import load as load_model
from arriero.app.web import create_app
from arriero.config import Settings
from arriero.config_sources import load
from arriero.core import EngineStats
from arriero.gateway.entrance import Entrance
from arriero.models.sources.catalog import DEFAULT_MODEL
from arriero.models.sources.download import fetch
from arriero.pool import Pool, ServedModel
from clock import Clock
from hub_server import Hub, serving
from references.vocabularies import unpack

# What runs in a shell's background ignores it, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Before anything asks for it: tests know no keys of whoever runs them, and write nobody's usage. Once, though this file
# may be imported under two names.
if "arriero-tests-" not in os.environ.get("XDG_DATA_HOME", ""):
    os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="arriero-tests-")


@pytest.fixture
def clock() -> Clock:
    """In May 2026."""
    return Clock()


FIGURES: list[str] = []
"""What tests have counted or measured; printed in the end."""


@pytest.fixture
def figures() -> Callable[[str], None]:
    """Have a line printed when all tests are over."""
    return FIGURES.append


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if FIGURES:
        terminalreporter.section("figures")
        for line in FIGURES:
            terminalreporter.line(line)


@dataclass
class Watched:
    """A model whose engine can be looked at."""

    model: ServedModel

    async def until(self, condition: Callable[[EngineStats], bool]) -> None:
        """Wait for what the model thread brings about; fails after a minute."""
        async with asyncio.timeout(60):
            while not condition(self.model.engine.stats()):  # noqa: ASYNC110  # nobody announces it
                await asyncio.sleep(0.005)


@dataclass
class Served(Watched):
    """A model behind the API, reached without a network."""

    client: httpx.AsyncClient
    settings: Settings

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.client.post(path, json={"model": self.model.name, **body})

    async def chat(self, content: Any = "Hello", **body: Any) -> httpx.Response:
        return await self.post("/v1/chat/completions", messages=[{"role": "user", "content": content}], **body)

    async def complete(self, prompt: Any = "Hello", **body: Any) -> httpx.Response:
        return await self.post("/v1/completions", prompt=prompt, **body)


def settings_for(directory: Path, script: list[dict[str, str]] | None = None, **settings: Any) -> Settings:
    if script is not None:
        settings["script"] = directory / "script.json"
        settings["script"].write_text(json.dumps(script), "utf-8")
    return Settings(engine="scripted", **settings)


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Served]]]:
    """Start a scripted model; takes `script`, any setting, and `delivery`."""
    async with AsyncExitStack() as stack:

        async def start(delivery: Delivery | None = None, **settings: Any) -> Served:
            chosen = settings_for(tmp_path, **settings)
            model = load_model(chosen)
            await model.engine.start()
            stack.push_async_callback(model.engine.close)
            app = Entrance(application(Pool([model]), delivery=delivery)) if delivery else create_app(chosen, model)
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            client = httpx.AsyncClient(transport=transport, base_url="http://arriero")
            return Served(model, await stack.enter_async_context(client), chosen)

        yield start


@pytest.fixture
async def served(serve: Callable[..., Awaitable[Served]]) -> Served:
    """A model that echoes."""
    return await serve()


@dataclass
class Live(Watched):
    """A server on a port of its own."""

    url: str


@contextmanager
def live_server(settings: Settings) -> Iterator[Live]:
    model = load_model(settings)
    server = uvicorn.Server(uvicorn.Config(create_app(settings, model), lifespan="off", log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:

        async def run() -> None:
            await model.engine.start()
            await server.serve([listening])
            await model.engine.close()

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                time.sleep(0.01)
            yield Live(model, f"http://127.0.0.1:{listening.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def go_live(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """Start a server; takes `script` and any setting."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(live_server(settings_for(tmp_path, **settings)))


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The catalog's real model, downloaded once into Arriero's own cache."""
    return fetch(DEFAULT_MODEL, load({}).cache)


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The catalog's encoder, downloaded once into Arriero's own cache."""
    return fetch("all-MiniLM-L6-v2", load({}).cache)


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small vocabularies of many kinds by name: GGUF files and Hugging Face directories."""
    return unpack(tmp_path_factory.mktemp("vocabularies"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, a cache of its own, and nobody logged in."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as hub:
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        yield hub
        close_session()
