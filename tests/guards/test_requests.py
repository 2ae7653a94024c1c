"""What a request costs besides the model: tasks, steps, and calls of functions in the rooms that it passes through."""

import asyncio
import os
import subprocess
import sys

import orjson
import pytest

from arriero.app.web import create_app
from arriero.wire.scope import set_lost
from guards.counts import Calls, check

BODY = orjson.dumps(
    {
        "model": "scripted",
        "messages": [{"role": "user", "content": " ".join(["word"] * 20)}],
        "max_tokens": 16,
        "temperature": 0,
    }
)
HEADERS = [(b"host", b"x"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


@pytest.fixture
async def server(serve):
    served = await serve()
    return served, create_app(served.settings, served.model)


async def ask(app):
    """One request of a server that tells when a connection is lost, as ours does; the status of its answer."""
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": list(HEADERS)}
    set_lost(scope, asyncio.get_running_loop().create_future())
    statuses = []

    async def receive():
        return {"type": "http.request", "body": BODY}

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(scope, receive, send)
    return statuses


# Functions written in Python, and others.
CALLS = {"api": (75, 122), "engine": (718, 745), "gateway": (38, 20), "text": (88, 138), "wire": (17, 13)}


@pytest.mark.parametrize("room", CALLS)
async def test_calls_of_a_request(server, room):
    _, app = server
    await ask(app)
    with Calls(room) as calls:
        assert await ask(app) == [200]
    functions, builtins = CALLS[room]
    counted = {"functions": calls.functions, "builtins": calls.builtins}
    # Versions of Python differ by a few calls.
    check(f"calls in {room}", counted, {"functions": functions * 110 // 100, "builtins": builtins * 110 // 100})


async def test_an_answer_in_one_piece_takes_no_task_of_its_own(server):
    _, app = server
    loop, made = asyncio.get_running_loop(), []

    def factory(loop, work, **options):
        made.append(work)
        return asyncio.Task(work, loop=loop, **options)

    loop.set_task_factory(factory)
    assert await ask(app) == [200]
    loop.set_task_factory(None)
    check("a request", {"tasks": len(made)}, {"tasks": 0})


async def test_steps_of_the_scripted_engine(server):
    """It reads whole prompts: that takes it no time, so nobody has to be spared it."""
    served, app = server
    assert await asyncio.gather(*(ask(app) for _ in range(8))) == [[200]] * 8
    check("8 requests of 16 tokens", {"steps": served.model.engine.stats().steps}, {"steps": 16})


TOKENIZE = """
import os
from arriero.app.script import byte_tokenizer
tokenizer, before = byte_tokenizer(), len(os.listdir("/proc/self/task"))
tokenizer.encode("a text")
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads that are not Python's are counted by /proc")
def test_a_text_is_tokenized_in_the_thread_that_asks():
    variables = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    run = subprocess.run([sys.executable, "-c", TOKENIZE], env=variables, capture_output=True, text=True, check=True)
    check("a text", {"threads": int(run.stdout)}, {"threads": 0})
