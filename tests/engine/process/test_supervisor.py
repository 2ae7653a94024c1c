"""A child that dies, freezes or does not start, and what its callers notice of it."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arriero.core import Finished, Token
from arriero.engine.process import launched, supervisor
from arriero.engine.process.supervisor import ProcessEngine, pause
from arriero.errors import ConfigError, EngineDied, ModelLoadError, Overloaded, UnsupportedModel
from engine.process.opening import DIE, DIE_LATER, DIE_ONCE, FAIL, FREEZE, STOP
from engine.process.test_contract import COMMAND, answer, ask, the_rest, tokens, until


@pytest.fixture
async def start():
    engines = []

    async def begin(command=COMMAND, on_progress=None, patience=100.0, silence=10.0, standstill=60.0, **order):
        engine = ProcessEngine(
            command, order, on_progress=on_progress, patience=patience, silence=silence, standstill=standstill
        )
        engines.append(engine)
        await engine.start()
        return engine

    yield begin
    for engine in engines:
        await engine.close()


@pytest.fixture
def quick(monkeypatch):
    """Looks at a child ten times as often."""
    monkeypatch.setattr(launched, "BEAT", 0.1)


def num_open_files():
    return len(os.listdir("/dev/fd"))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def state_of(pid):
    """As ps shows it; Z for one that waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


async def test_who_was_told_something_gets_an_error_and_others_their_answer(start):
    engine = await start(pace=0.005)
    told = engine.generate(ask(end=frozenset(), max_tokens=90))
    await anext(told)
    first = engine.pid
    os.kill(first, signal.SIGSTOP)  # so that those who come now are not told anything
    waiting = [asyncio.create_task(answer(engine, ask((number, 9)))) for number in (1, 2, 3)]
    await asyncio.sleep(0)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(EngineDied, match="died"):
        await the_rest(told)
    assert [tokens(events) for events in await asyncio.gather(*waiting)] == [[1, 9], [2, 9], [3, 9]]
    assert engine.pid != first
    assert not is_alive(first)
    assert (engine.state, engine.stats().restarts) == ("ready", 1)


async def test_who_does_not_read_along_gets_the_whole_answer_once(start):
    engine = await start(pace=0.005)
    prompt = tuple(range(1, 50))
    whole = asyncio.create_task(answer(engine, ask(prompt, n=2, max_tokens=40, streamed=False)))
    for deaths in (1, 2):
        drawn = engine.stats().generated_tokens
        await until(engine, lambda stats, drawn=drawn: stats.generated_tokens > drawn + 5)
        os.kill(engine.pid, signal.SIGKILL)
        await until(engine, lambda stats, deaths=deaths: stats.restarts == deaths)
    events = await whole
    assert [tokens(events, index) for index in (0, 1)] == [list(prompt[:40])] * 2
    assert sorted(event.index for event in events if isinstance(event, Finished)) == [0, 1]


async def test_an_answer_that_is_another_the_second_time_is_none(start):
    expected = [Token(0, 5), Token(1, 6)]
    repeated = supervisor._Repeated(expected)
    assert repeated.without([Token(1, 6), Token(1, 7)]) == [Token(1, 7)]
    with pytest.raises(EngineDied, match="otherwise"):
        repeated.without([Token(0, 4)])


async def test_nothing_is_said_twice(start):
    engine = await start()
    events = []

    async def listen():
        async for news in engine.generate(ask((DIE_LATER, 1, 2, 3, 4, 5))):
            events.extend(news)

    with pytest.raises(EngineDied):
        await listen()
    # There may be none: what a dying process has sent is not always what arrives.
    assert tokens(events) == [DIE_LATER, 1, 2, 3, 4, 5][: len(events)]
    assert tokens(await answer(engine, ask())) == [5, 6, 7]


async def test_a_request_that_kills_every_engine_is_given_up(start, monkeypatch, caplog):
    monkeypatch.setattr(supervisor, "pause", lambda deaths: 0.0)
    engine = await start()
    with pytest.raises(EngineDied):
        await answer(engine, ask((DIE,)))
    assert tokens(await answer(engine, ask())) == [5, 6, 7]
    assert engine.stats().restarts == supervisor.RERUNS + 1
    assert "of the model ended by SIGKILL" in caplog.text
    assert "The engine of the model is started again" in caplog.text
    assert "is run again" in caplog.text


async def test_one_that_dies_once_is_not_noticed(start, tmp_path):
    engine = await start(once=str(tmp_path / "died"))
    assert tokens(await answer(engine, ask((DIE_ONCE, 4)))) == [DIE_ONCE, 4]
    assert engine.stats().restarts == 1


async def test_a_runner_that_fails_takes_its_process_along(start, monkeypatch, caplog):
    monkeypatch.setattr(supervisor, "RERUNS", 0)
    engine = await start()
    first = engine.pid
    with pytest.raises(EngineDied, match="failed while it was at work"):
        await answer(engine, ask((FAIL,)))
    assert tokens(await answer(engine, ask())) == [5, 6, 7]
    assert engine.pid != first
    assert "as the prompt wants it" in caplog.text  # what the child logs is logged here


@pytest.mark.parametrize(("token", "word"), [(STOP, "sign of life"), (FREEZE, "not got on")])
async def test_a_frozen_child_is_replaced(start, quick, monkeypatch, caplog, token, word):
    monkeypatch.setattr(supervisor, "RERUNS", 0)
    engine = await start()
    first = engine.pid
    asked = asyncio.create_task(answer(engine, ask((token,))))
    if token == STOP:
        while state_of(first) != "T":  # noqa: ASYNC110  # the system announces it to nobody
            await asyncio.sleep(0.01)
        engine._child._silence = 0.3  # Its own patience is short; the next child has all the time it needs.
    else:
        await until(engine, lambda stats: stats.running)
        engine._child._standstill = 0.5
    with pytest.raises(EngineDied):
        await asked
    assert not is_alive(first)
    assert word in caplog.text
    assert tokens(await answer(engine, ask())) == [5, 6, 7]


async def test_a_child_that_waits_for_work_is_not_frozen(start, quick):
    engine = await start(standstill=0.2)
    first = engine.pid
    await asyncio.sleep(1.0)
    assert (engine.state, engine.pid) == ("ready", first)


async def test_an_engine_that_cannot_be_started_again_fails_for_good(start, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(supervisor, "pause", lambda deaths: 0.0)
    monkeypatch.setattr(supervisor, "RESTARTS", 2)
    engine = await start(refuse_after=str(tmp_path / "loaded"))
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineDied):
        await answer(engine, ask((DIE,)))
    assert engine.state == "failed"
    assert engine.pid is None
    with pytest.raises(EngineDied, match="did not help"):
        engine.stats()
    with pytest.raises(EngineDied, match="did not help"):
        await answer(engine, ask())
    assert "It cannot be loaded any more." in caplog.text


async def test_who_waits_too_long_for_a_restart_may_try_again(start, monkeypatch):
    monkeypatch.setattr(supervisor, "pause", lambda deaths: 60.0)
    engine = await start(patience=0.2)
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(Overloaded) as refused:
        await answer(engine, ask())
    assert refused.value.retry_after == 0.2
    assert engine.state == "restarting"
    assert engine.stats().restarts == 1


@pytest.mark.parametrize("error", [ModelLoadError("No weights."), UnsupportedModel("Odd."), ConfigError("Too odd.")])
async def test_what_the_child_cannot_load_is_raised_as_it_says_it(start, error):
    with pytest.raises(type(error), match=str(error)):
        await start(error=error)


async def test_any_failure_to_load_is_one(start, caplog):
    with pytest.raises(ModelLoadError, match="not as it should be"):
        await start(error=ZeroDivisionError("not as it should be"))
    assert "ZeroDivisionError" in caplog.text


async def test_a_child_that_ends_instead_of_loading(start):
    with pytest.raises(EngineDied):
        await start(command=(sys.executable, "-c", "raise SystemExit(3)"))


async def test_a_command_that_is_not_there(start):
    with pytest.raises(ModelLoadError, match="No process"):
        await start(command=("/no/such/python",))


async def test_progress_is_heard_of(start):
    heard = []
    engine = await start(on_progress=heard.append, progress=(1, 2, 3))
    assert heard == [("convert", 1, 3), ("convert", 2, 3), ("convert", 3, 3)]
    assert engine.about == {"pid": engine.pid}


async def test_closing_while_it_loads(start):
    starting = asyncio.create_task(start(slowly=60))
    await asyncio.sleep(0.3)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting


async def test_closing_gives_everything_back(start):
    engine = await start()
    pid, memory = engine.pid, engine.memory()
    assert memory is None or memory > 1_000_000
    open_files = num_open_files()
    await engine.close()
    assert not is_alive(pid)
    assert (engine.pid, engine.memory()) == (None, None)
    assert num_open_files() < open_files


async def test_signals_for_the_terminal_are_not_the_child_s(start):
    engine = await start()
    assert os.getpgid(engine.pid) != os.getpgid(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(engine.pid, number)
    assert tokens(await answer(engine, ask())) == [5, 6, 7]


def test_a_child_dies_with_its_parent():
    program = (
        "import asyncio, os, signal, sys\n"
        "from arriero.engine.process.supervisor import ProcessEngine\n"
        "async def main():\n"
        f"    engine = ProcessEngine({COMMAND!r}, {{}})\n"
        "    await engine.start()\n"
        "    print(engine.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL
    child = int(ended.stdout)
    # It holds the pipe of this process's standard error, so by now it is gone, or about to be, or to be reaped.
    end = time.monotonic() + 10
    while is_alive(child) and state_of(child) != "Z":
        assert time.monotonic() < end
        time.sleep(0.01)


async def test_log_lines_of_the_child_have_the_parent_s_levels(start, caplog):
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(ModelLoadError):
        await start(error=ZeroDivisionError("unseen"))
    assert "unseen" not in caplog.text


def test_the_pause_before_a_restart_grows_and_is_bounded():
    pauses = [pause(deaths) for deaths in range(1, 20)]
    assert pauses[0] == 0
    assert pauses == sorted(pauses)
    assert max(pauses) == 30


async def test_an_idle_engine_that_dies_is_back_before_anybody_asks(start):
    engine = await start()
    os.kill(engine.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while engine.state != "restarting":  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0.005)
        while engine.state != "ready":  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await until(engine, lambda stats: stats.restarts == 1)
    assert isinstance((await answer(engine, ask()))[0], Token)
