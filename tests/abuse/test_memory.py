"""What clients leave in the memory of a server is freed when they are gone, and not when the garbage collector comes.

It comes seldom and looks at all that there is; objects in circles wait for it, with the prompts that they hold.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE
from typing import Any

import httpx

from abuse.conftest import FAULTS, UPSTREAM, chat, failing
from soak_clients import BEHAVIOURS, LIMITS, Client, Told
from soak_server import WARDEN, Running, Watch, running

CIRCLES = Path(__file__).with_name("circles.py")
SHORT_OF_ROOM = """
slots = 4
max_queue = 4

[[models]]
name = "scripted"
engine = "scripted"
pace = 500
preload = true
"""
TWICE = {"model": "scripted", "prompt": ["some words", "others"], "n": 2}
ALONE = {"model": "scripted", "prompt": "some words"}
QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    *(("/v1/chat/completions", chat(stream=stream, stop=["w"], frequency_penalty=1)) for stream in (False, True)),
    *(("/v1/chat/completions", chat(text="x " * 400, stream=stream, deadline=0.02)) for stream in (False, True)),
    *(("/v1/completions", {**TWICE, "stream": stream}) for stream in (False, True)),
    ("/v1/completions", {**ALONE, "logprobs": 2, "echo": True}),
    ("/v1/completions", {**ALONE, "use_beam_search": True, "best_of": 3, "temperature": 0}),
    ("/v1/completions", {**ALONE, "max_tokens": 10**6}),
    ("/v1/embeddings", {"model": "scripted", "input": ["some words", "others"]}),
    ("/v1/rerank", {"model": "scripted", "query": "a", "documents": ["a", "b"]}),
    ("/tokenize", ALONE),
]


def test_no_client_leaves_circles(tmp_path: Path, figures: Callable[[str], None]) -> None:
    """Clients of every kind, all that may be asked, and other servers that fail; imports and the like come before."""
    kinds = {name: LIMITS.get(name, {}) for name in BEHAVIOURS}
    config = tmp_path / "arriero.toml"
    with failing() as port:
        config.write_text(SHORT_OF_ROOM + "".join(UPSTREAM.format(name=name, port=port) for name in FAULTS))
        arguments = ["--log-level", "error", "--config", str(config)]
        with running(arguments, kinds, program=[str(CIRCLES)], stdin=PIPE) as run:
            assert run.process.stdin
            assert run.process.stdout
            run.process.stdout.readline()  # the second line of its greeting
            run.server.models["scripted"] = None
            for num_visits, others in ((1, ["429"]), (4, FAULTS)):
                outcomes = asyncio.run(clients(run, num_visits, others))
                run.process.stdin.write("\n")
                run.process.stdin.flush()
                left = json.loads(run.process.stdout.readline())
    figures(f"{outcomes.total()} visits, {len(outcomes)} outcomes; left to the garbage collector: {left or 'nothing'}")
    assert {"200", "400", "401", "404", "413", "503", "left"} <= {outcome for _, outcome in outcomes}
    assert left == {}


async def clients(run: Running, number: int, others: Sequence[str]) -> Counter[tuple[str, str]]:
    """So many of each kind, and others' models, all at once; then questions. Ends when the server has no more to do."""
    outcomes: Counter[tuple[str, str]] = Counter()

    async def visit(name: str, seed: int) -> None:
        behaviour, allowed, _ = BEHAVIOURS[name]
        outcome = await behaviour(Client(run.server, random.Random(seed), run.keys[name], Told()))
        assert outcome in allowed
        outcomes[name, outcome] += 1

    headers = {"x-api-key": run.keys["ask"]}
    url = f"http://{run.server.host}:{run.server.port}"
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as client:

        async def fail(name: str, stream: bool) -> None:
            with suppress(httpx.RemoteProtocolError):  # some answers are broken off
                await client.post("/v1/chat/completions", json=chat(name, stream=stream))

        visits = [visit(name, seed) for name in BEHAVIOURS for seed in range(number)]
        await asyncio.gather(*visits, *(fail(name, stream) for name in others for stream in (False, True)))
        statuses = [(await client.post(path, json=body)).status_code for path, body in QUESTIONS]
    assert set(statuses) == {200, 400, 504}
    assert statuses.count(400) == 1
    assert statuses.count(504) <= 2  # A stream whose deadline comes before its first token has not begun.
    watch = Watch(Client(run.server, random.Random(0), run.keys[WARDEN], Told()), run.process.pid)
    while await watch.total("arriero_slots_used") or await watch.total("arriero_requests_waiting"):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return outcomes
