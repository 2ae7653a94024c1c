"""Models that come and go, as those who ask for them see it."""

import asyncio
import logging

import pytest

from arriero.app import load
from arriero.config import Settings
from arriero.core import GenerationRequest
from arriero.errors import ConfigError, InvalidRequest, ModelLoadError, Overloaded, UnknownModel
from arriero.pool import Entry, Pool
from arriero.pool import entry as entries
from arriero.pool import pool as pools

MB = 2**20


class Shelf:
    """Scripted models by name, which tell how much memory they pretend to take."""

    def __init__(self):
        self.loads = []
        self.closed = []
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.error = None
        self.sizes = {}
        self.pools = []

    def entry(self, name, size=10, estimate=None, **options):
        self.sizes[name] = size * MB

        async def open_model():
            self.loads.append(name)
            await self.may_load.wait()
            if self.error:
                raise self.error
            model = load(Settings(engine="scripted", model_name=name, slots=2, pace=100.0))
            await model.engine.start()
            close = model.engine.close

            async def closing(grace=0.0):
                self.closed.append(name)
                await close(grace)

            model.engine.close = closing
            model.engine.memory = lambda: self.sizes[name]
            return model

        return Entry(name, open_model, estimate=lambda: (size if estimate is None else estimate) * MB, **options)

    def pool(self, *entries, budget=0, **options):
        pool = Pool(entries, memory_budget=budget * MB, **{"grace": 5.0, **options})
        self.pools.append(pool)
        return pool

    def in_memory(self):
        return [model.name for model in self.pools[-1].list()]


@pytest.fixture
async def shelf(monkeypatch):
    monkeypatch.setattr(pools, "_TICK", 0.01)
    monkeypatch.setattr(pools, "_MEASURE", 0.02)
    monkeypatch.setattr(entries, "_LOOK", 0.005)
    shelf = Shelf()
    yield shelf
    for pool in shelf.pools:
        await pool.close()


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0.005)


async def ask(pool, name):
    """One request: a task of its own."""

    async def request():
        return (await pool.get(name)).name

    return await asyncio.create_task(request())


class User:
    """Somebody who has asked for a model and is not done with it."""

    def __init__(self, pool, name):
        self._done = asyncio.Event()
        self._got = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._use(pool, name))

    async def _use(self, pool, name):
        self._got.set_result(await pool.get(name))
        await self._done.wait()

    async def model(self):
        return await self._got

    async def leave(self):
        self._done.set()
        await self._task


async def test_a_model_is_loaded_when_somebody_asks_and_once_for_all_who_do(shelf):
    pool = shelf.pool(shelf.entry("a"), shelf.entry("b"))
    assert [entry.state for entry in pool.entries] == ["unloaded", "unloaded"]
    assert await asyncio.gather(*(ask(pool, "a") for _ in range(5))) == ["a"] * 5
    assert shelf.loads == ["a"]
    assert [entry.state for entry in pool.entries] == ["ready", "unloaded"]
    assert pool.entries[0].num_bytes == 10 * MB


async def test_names_aliases_and_patterns(shelf):
    pool = shelf.pool(
        shelf.entry("a", aliases=["gpt-4", "gpt-*"]), shelf.entry("b", aliases=["gpt-5*"]), default="gpt-4"
    )
    assert [pool.name_of(name) for name in ("a", "gpt-4", "gpt-4o", "gpt-5-mini", "b")] == ["a", "a", "a", "b", "b"]
    assert pool.aliases() == [("gpt-4", "a")]
    assert await ask(pool, "gpt-4") == "a"
    for name in ("", "gpt", "c"):
        with pytest.raises(UnknownModel):
            await ask(pool, name)
    with pytest.raises(UnknownModel):
        Pool([], default="x")
    with pytest.raises(ConfigError, match="'a'"):
        shelf.pool(shelf.entry("a"), shelf.entry("b", aliases=["a"]))


async def test_who_waits_too_long_may_come_back(shelf):
    pool = shelf.pool(shelf.entry("a"), patience=0.05)
    shelf.may_load.clear()
    with pytest.raises(Overloaded, match="being loaded") as refused:
        await ask(pool, "a")
    assert refused.value.retry_after >= 1
    assert pool.entries[0].state == "loading"
    shelf.may_load.set()
    await until(lambda: pool.entries[0].state != "loading")
    assert await ask(pool, "a") == "a"
    assert shelf.loads == ["a"]


@pytest.mark.parametrize("ask_for", [Pool.get, Pool.load, Pool.unload])
async def test_who_comes_between_the_end_of_loading_and_its_announcement_is_answered(shelf, ask_for):
    pool = shelf.pool(shelf.entry("a"))
    first = asyncio.create_task(pool.load("a"))
    await asyncio.sleep(0)
    [move] = pool._moves.values()
    while not move.done():  # noqa: ASYNC110  # once in each turn of the loop: sees it before any callback does
        await asyncio.sleep(0)
    assert pool._moves
    first.cancel()
    await ask_for(pool, "a")  # in this task, without another turn
    assert shelf.loads == ["a"]
    assert pool.entries[0].state == ("unloaded" if ask_for is Pool.unload else "ready")


async def test_what_cannot_be_loaded_says_so_and_is_not_tried_for_every_request(shelf, monkeypatch, caplog):
    pool = shelf.pool(shelf.entry("a"))
    shelf.error = ModelLoadError("No weights.")
    for _ in range(3):
        with pytest.raises(ModelLoadError, match="'a' could not be loaded"):
            await ask(pool, "a")
    assert shelf.loads == ["a"]
    assert pool.entries[0].state == "failed"
    shelf.error = None
    monkeypatch.setattr(pools, "_RETRY", 0.0)
    assert await ask(pool, "a") == "a"
    assert "a could not be loaded" in caplog.text


async def test_the_least_recently_used_goes_first(shelf):
    pool = shelf.pool(*(shelf.entry(name) for name in "abcd"), budget=30)
    for name in "abcab":
        await ask(pool, name)
    await ask(pool, "d")
    assert shelf.closed == ["c"]
    assert sorted(shelf.in_memory()) == ["a", "b", "d"]


async def test_a_model_in_use_stays(shelf):
    pool = shelf.pool(*(shelf.entry(name) for name in "abc"), budget=20)
    first, second = User(pool, "a"), User(pool, "b")
    await first.model()
    await second.model()
    pool._patience = 0.05  # not before, for loading takes its time too
    with pytest.raises(Overloaded):
        await ask(pool, "c")
    assert shelf.closed == []
    pool._patience = 10.0
    third = User(pool, "c")
    await asyncio.sleep(0.01)
    await second.leave()
    assert (await third.model()).name == "c"
    assert shelf.closed == ["b"]
    await third.leave()
    await first.leave()


async def test_what_an_engine_is_at_work_on_is_use_too(shelf):
    pool = shelf.pool(shelf.entry("a"), shelf.entry("b"), budget=10)
    await ask(pool, "a")
    (model,) = pool.list()
    request = GenerationRequest(id="r", prompts=((65,),), max_tokens=500)
    events = model.engine.generate(request)
    await anext(events)
    pool._patience = 0.05
    with pytest.raises(Overloaded):
        await ask(pool, "b")
    pool._patience = 10.0
    await events.aclose()
    await until(lambda: not model.engine.stats().running)
    assert await ask(pool, "b") == "b"


async def test_what_never_fits_is_an_error(shelf):
    pool = shelf.pool(shelf.entry("a", size=50), budget=20)
    with pytest.raises(ModelLoadError, match="50 MB"):
        await ask(pool, "a")
    assert shelf.loads == []


async def test_what_counts_is_what_is_measured(shelf):
    pool = shelf.pool(shelf.entry("a", size=25, estimate=5), shelf.entry("b", size=10), budget=30)
    await ask(pool, "a")
    assert pool.entries[0].num_bytes == 25 * MB
    await ask(pool, "b")
    assert shelf.closed == ["a"]


async def test_those_that_grow_make_room_for_themselves(shelf):
    pool = shelf.pool(shelf.entry("a"), shelf.entry("b"), budget=30)
    await pool.start()
    await ask(pool, "a")
    await ask(pool, "b")
    shelf.sizes["b"] = 25 * MB
    await until(lambda: shelf.closed == ["a"])
    assert shelf.in_memory() == ["b"]


async def test_nobody_stays_who_is_not_used(shelf):
    pool = shelf.pool(shelf.entry("a", ttl=0.03), shelf.entry("b"), shelf.entry("c", ttl=0.03))
    await pool.start()
    user = User(pool, "c")
    await user.model()
    await ask(pool, "a")
    await ask(pool, "b")
    await until(lambda: shelf.closed == ["a"])
    await asyncio.sleep(0.05)
    assert sorted(shelf.in_memory()) == ["b", "c"]
    await user.leave()
    await until(lambda: shelf.closed == ["a", "c"])
    assert await ask(pool, "a") == "a"


async def test_preloaded_models_are_there_from_the_start(shelf):
    pool = shelf.pool(shelf.entry("a", preload=True), shelf.entry("b"))
    await pool.start()
    assert shelf.in_memory() == ["a"]


async def test_a_failure_to_preload_is_the_start_s(shelf):
    pool = shelf.pool(shelf.entry("a", preload=True))
    shelf.error = ModelLoadError("No weights.")
    with pytest.raises(ModelLoadError):
        await pool.start()


async def test_loading_and_unloading_by_hand(shelf):
    pool = shelf.pool(shelf.entry("a"))
    assert (await pool.load("a")).state == "ready"
    assert (await pool.load("a")).state == "ready"
    assert (await pool.unload("a")).state == "unloaded"
    assert (await pool.unload("a")).state == "unloaded"
    assert (shelf.loads, shelf.closed) == (["a"], ["a"])
    assert [name for name, known in pool.entries[0].listed() if known] == ["a"]


async def test_unloading_waits_for_who_is_there_and_who_comes_waits_for_it(shelf):
    pool = shelf.pool(shelf.entry("a"))
    user = User(pool, "a")
    await user.model()
    unloading = asyncio.create_task(pool.unload("a"))
    await asyncio.sleep(0)
    late = asyncio.create_task(ask(pool, "a"))
    await asyncio.sleep(0.02)
    assert pool.entries[0].state == "unloading"
    assert shelf.closed == []
    await user.leave()
    await unloading
    assert await late == "a"
    assert shelf.loads == ["a", "a"]


async def test_unloading_does_not_wait_for_ever(shelf):
    pool = shelf.pool(shelf.entry("a"), grace=0.02)
    user = User(pool, "a")
    await user.model()
    await pool.unload("a")
    assert shelf.closed == ["a"]
    await user.leave()


async def test_a_waiting_request_that_is_cancelled_leaves_the_loading_alone(shelf):
    pool = shelf.pool(shelf.entry("a"))
    shelf.may_load.clear()
    asking = asyncio.create_task(ask(pool, "a"))
    await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    shelf.may_load.set()
    assert await ask(pool, "a") == "a"
    assert shelf.loads == ["a"]


async def test_closing_while_something_loads(shelf):
    pool = shelf.pool(shelf.entry("a"), shelf.entry("b"))
    await ask(pool, "b")
    shelf.may_load.clear()
    asking = asyncio.create_task(ask(pool, "a"))
    await asyncio.sleep(0.01)
    await pool.close()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert shelf.closed == ["b"]


async def test_an_engine_that_died_for_good_is_loaded_again(shelf, monkeypatch, caplog):
    caplog.set_level(logging.CRITICAL)
    pool = shelf.pool(shelf.entry("a"))
    await ask(pool, "a")
    (model,) = pool.list()
    monkeypatch.setattr("arriero.runners.scripted.ScriptedRunner.step", None)
    with pytest.raises(Exception, match="failed"):
        await anext(model.engine.generate(GenerationRequest(id="r", prompts=((65,),), max_tokens=5)))
    monkeypatch.undo()
    assert pool.entries[0].state == "failed"
    assert await ask(pool, "a") == "a"
    assert (shelf.loads, shelf.closed) == (["a", "a"], ["a"])


async def test_a_model_that_is_there_for_good(shelf):
    model = load(Settings(engine="scripted"))
    await model.engine.start()
    pool = shelf.pool(model, budget=1)
    await pool.start()
    assert await pool.get("scripted") is model
    assert (await pool.load("scripted")).is_fixed
    with pytest.raises(InvalidRequest, match="for good"):
        await pool.unload("scripted")
    await pool.close()
    assert model.engine.state == "closed"


async def test_under_pressure_everybody_gets_an_answer_and_the_budget_holds(shelf):
    pool = shelf.pool(*(shelf.entry(name) for name in "abcd"), budget=20)

    async def one(name):
        model = await pool.get(name)
        assert sum(entry.num_bytes for entry in pool.entries if entry.takes_memory) <= 20 * MB
        await asyncio.sleep(0.002)
        assert model.engine.state == "ready"
        return model.name

    names = ["abcd"[number * 7 % 4] for number in range(40)]
    assert await asyncio.gather(*(asyncio.create_task(one(name)) for name in names)) == names
