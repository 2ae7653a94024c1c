"""What clients leave in the memory of a server is freed when they are gone, and not when the garbage collector comes.

It comes seldom and looks at all that there is; objects in circles wait for it, with the prompts that they hold.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

from soak_clients import BEHAVIOURS, LIMITS, Client, Told
from soak_server import WARDEN, Running, Watch, running

CIRCLES = Path(__file__).with_name("circles.py")
SHORT_OF_ROOM = ("--log-level", "error", "--engine", "scripted", "--pace", "500", "--slots", "4", "--max-queue", "4")


def test_no_client_leaves_circles(figures: Callable[[str], None]) -> None:
    """Two rounds of clients of every kind; what only the first leaves comes of imports."""
    kinds = {name: LIMITS.get(name, {}) for name in BEHAVIOURS}
    with running(SHORT_OF_ROOM, kinds, program=[str(CIRCLES)], stdin=PIPE) as run:
        assert run.process.stdin
        assert run.process.stdout
        run.process.stdout.readline()  # the second line of its greeting
        run.server.models["scripted"] = None
        for num_visits in (1, 4):
            outcomes = asyncio.run(visits(run, num_visits))
            run.process.stdin.write("\n")
            run.process.stdin.flush()
            left = json.loads(run.process.stdout.readline())
    figures(f"{outcomes.total()} visits, {len(outcomes)} outcomes; left to the garbage collector: {left or 'nothing'}")
    assert {"200", "400", "401", "404", "413", "503", "left"} <= {outcome for _, outcome in outcomes}
    assert left == {}


async def visits(run: Running, number: int) -> Counter[tuple[str, str]]:
    """So many of each kind, all at once; ends when the server has nothing more to do for them."""
    outcomes: Counter[tuple[str, str]] = Counter()

    async def visit(name: str, seed: int) -> None:
        behaviour, allowed, _ = BEHAVIOURS[name]
        outcome = await behaviour(Client(run.server, random.Random(seed), run.keys[name], Told()))
        assert outcome in allowed
        outcomes[name, outcome] += 1

    await asyncio.gather(*(visit(name, seed) for name in BEHAVIOURS for seed in range(number)))
    watch = Watch(Client(run.server, random.Random(0), run.keys[WARDEN], Told()), run.process.pid)
    while await watch.total("arriero_slots_used") or await watch.total("arriero_requests_waiting"):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return outcomes
