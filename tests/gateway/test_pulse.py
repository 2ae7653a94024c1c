import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from arriero.core import EngineStats
from arriero.gateway import pulse
from arriero.gateway.metrics import ModelState
from arriero.gateway.pulse import Progress, Pulse


def model(steps: int, **stats: int) -> ModelState:
    return ModelState(name="a", state="ready", stats=EngineStats(steps=steps, **stats))


def test_an_engine_with_work_that_makes_no_step_has_stalled() -> None:
    now = 0.0
    progress = Progress(10, clock=lambda: now)

    def stalled(seconds: float, seen: ModelState) -> bool:
        nonlocal now
        now = seconds
        return bool(progress.stalled([seen]))

    assert not stalled(0, model(5, waiting=1))
    assert not stalled(10, model(5, waiting=1))
    assert stalled(11, model(5, waiting=1))
    assert not stalled(12, model(6, waiting=1)), "a step was made"
    assert not stalled(20, model(6, running=1))
    assert stalled(23, model(6, running=1))
    assert not stalled(24, model(6)), "there is no work"
    assert not stalled(100, model(6, waiting=1)), "the work has just come"
    assert stalled(111, model(6, waiting=1))


async def test_a_loop_that_is_late_all_the_time_is_told_from_one_that_was_once(monkeypatch: Any) -> None:
    monkeypatch.setattr(pulse, "BEAT", 0.001)
    monkeypatch.setattr(pulse, "LATE", 0.01)
    felt = Pulse()
    felt.start()
    try:
        for _ in range(5):
            await asyncio.sleep(0.002)
        time.sleep(0.05)  # noqa: ASYNC251  # what is felt here
        await asyncio.sleep(0.002)
        assert felt.lag > 0.03
        assert not felt.is_late
        while not felt.is_late:
            time.sleep(0.02)  # noqa: ASYNC251
            await asyncio.sleep(0)
    finally:
        felt.stop()


async def test_an_engine_that_hangs_makes_the_server_not_alive(
    serve: Callable[..., Awaitable[Any]], monkeypatch: Any
) -> None:
    served = await serve(stall_limit=0.1, pace=1000.0)  # A pace takes a thread, and leaves the loop to others.
    assert (await served.client.get("/health/live")).status_code == 200
    hang = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(
        "arriero.runners.scripted.ScriptedRunner.step",
        lambda self, rows: asyncio.run_coroutine_threadsafe(hang.wait(), loop).result(),
    )
    asking = asyncio.create_task(served.chat())
    await served.until(lambda stats: stats.running)
    async with asyncio.timeout(10):
        while (await served.client.get("/health/live")).status_code == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    answer = await served.client.get("/health/live")
    assert answer.json() == {"status": "failed", "reason": "an engine has work and makes no progress"}
    hang.set()
    assert (await asking).status_code == 500  # what the step returned is nothing to go on with
    assert (await served.client.get("/health/live")).json()["reason"] == "an engine failed"
