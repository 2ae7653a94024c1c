"""The command line as a user meets it: processes."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest

from arriero.cli import main

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ARRIERO_")}


@dataclass
class Finished:
    status: int
    stdout: str
    stderr: str


async def arriero(*arguments: str, **variables: str) -> Finished:
    """Run a command to its end."""
    async with launched(*arguments, **variables) as process:
        return await end(process)


async def end(process: asyncio.subprocess.Process) -> Finished:
    """Wait for a process to end by itself."""
    stdout, stderr = await process.communicate()
    return Finished(process.returncode, stdout.decode(), stderr.decode())


@asynccontextmanager
async def launched(*arguments: str, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "arriero", *arguments),
        env=ENVIRONMENT | {"COLUMNS": "200", "NO_COLOR": "1"} | variables,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:  # Whatever happened in a test, nothing is left running.
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@dataclass
class Server:
    process: asyncio.subprocess.Process
    url: str
    curl: str

    async def end(self) -> Finished:
        """Wait for the end of a server that was told to stop."""
        return await end(self.process)


@asynccontextmanager
async def serving(*arguments: str, **variables: str) -> AsyncIterator[Server]:
    """A server of the scripted engine on a free port, from its ready line to the end of the block."""
    async with launched("serve", "--engine", "scripted", "--port", "0", *arguments, **variables) as process:
        ready = (await process.stdout.readline()).decode()
        if not ready:
            pytest.fail((await process.stderr.read()).decode())
        url = re.search(r"https?://\S+?(?=/v1)", ready)[0]
        yield Server(process, url, (await process.stdout.readline()).decode())


@pytest.fixture
def run():
    return arriero


@pytest.fixture
def launch():
    return launched


@pytest.fixture
def serve():
    return serving


@pytest.fixture
def call(monkeypatch, capfd):
    """Run a command in this process: for those that end before they do anything."""
    monkeypatch.setattr(
        "arriero.cli.log.set_up", lambda level, form="text": None
    )  # pytest has handlers and signals of its own
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def arriero(*arguments: str, **variables: str) -> Finished:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["arriero", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return Finished(int(end.value.code or 0), *capfd.readouterr())

    return arriero
