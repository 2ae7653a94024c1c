"""A server as a process of its own, to be mistreated; with PROOF in the environment longer, and a real model."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.conftest import Faulty
from tiny_directory import write_directory

for name in ("soak_clients", "soak_server", "soak"):  # not by a path, on which there are others of the tests' names
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "benchmarks" / f"{name}.py")
    assert spec
    assert spec.loader
    if name not in sys.modules:
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])

from soak_clients import Client, Told  # noqa: E402
from soak_server import WARDEN, Running, Watch, running  # noqa: E402

LONG = bool(os.environ.get("PROOF"))
SLOTS = 2
"""Of the model in a child process."""
FAULTS = ("hangs", "drips", "stops", "resets", "garbage", "429", "500")
"""Models that are other servers', each with its way to fail."""
HOUSE = """
cache = "{cache}"

[[models]]
name = "scripted"
engine = "scripted"
pace = 500
preload = true

[[models]]
name = "child"
slots = 2
preload = true
{child}
"""
UPSTREAM = """
[[models]]
name = "{name}"
upstream = "http://127.0.0.1:{port}/{name}/v1"
first_byte_timeout = 0.5
between_bytes_timeout = 0.5
total_timeout = 1.5
"""


@dataclass
class House:
    """A server with a model in its own process, one in a child, and several of others that fail."""

    run: Running
    log: Path
    """Of every request, with the beginning of its body."""

    @property
    def url(self) -> str:
        return f"http://{self.run.server.host}:{self.run.server.port}"

    @property
    def watch(self) -> Watch:
        warden = Client(self.run.server, random.Random(0), self.run.keys[WARDEN], Told())
        return Watch(warden, self.run.process.pid)

    def client(self, key: str | None) -> httpx.AsyncClient:
        """One that shows this key, with as many connections as it takes."""
        headers = {} if key is None else {"authorization": f"Bearer {self.run.keys[key]}"}
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60, limits=limits, trust_env=False)

    async def until(self, name: str, condition: Callable[[int], bool]) -> None:
        """Wait until a metric is so; fails after twenty seconds."""
        async with asyncio.timeout(20):
            while not condition(await self.watch.total(name)):  # noqa: ASYNC110  # nobody announces it
                await asyncio.sleep(0.01)


def chat(model: str = "scripted", text: str = "some words", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


@contextmanager
def failing() -> Iterator[int]:
    """A server that fails as its path says, in a thread; its port."""
    from abuse.failing import fail

    started, loop = threading.Event(), asyncio.new_event_loop()
    port = 0

    async def serve() -> None:
        nonlocal port
        listening = await asyncio.start_server(Faulty(fail).serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            listening.close()

    def run() -> None:
        serving = loop.create_task(serve())
        loop.run_forever()
        others = asyncio.all_tasks(loop)
        for each in others:
            each.cancel()
        loop.run_until_complete(asyncio.gather(serving, *others, return_exceptions=True))
        loop.run_until_complete(asyncio.sleep(0.01))  # Transports close their sockets a turn later.
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    directory = tmp_path_factory.mktemp("house")
    child = 'model = "SmolLM2-135M-Instruct"'
    if not LONG:
        child = f'engine = "onnx"\nmodel = "{write_directory(directory / "Tiny")}"'
    with ExitStack() as stack:
        port = stack.enter_context(failing())
        text = HOUSE.format(cache=directory / "cache", child=child)
        if LONG:
            text = text.replace(f'cache = "{directory / "cache"}"\n', "")
        config = directory / "arriero.toml"
        config.write_text(text + "".join(UPSTREAM.format(name=name, port=port) for name in FAULTS))
        kinds = {"alice": {}, "many": {}, "one": {}, "chats": {"endpoints": ("chat/*",)}}
        log = stack.enter_context((directory / "log").open("w"))
        run = stack.enter_context(
            running(["--config", str(config), "--log-format", "json", "--log-prompts"], kinds, directory, stderr=log)
        )
        yield House(run, directory / "log")
