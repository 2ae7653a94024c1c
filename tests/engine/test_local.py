"""The engine as its callers know it, with the scripted runner in the model thread."""

import asyncio
import contextlib
import pickle
import random
import sys
import threading

import pytest

from arriero.compute import Row
from arriero.core import Beams, EngineStats, Finished, GenerationRequest, Logprob, PromptScored, Sampling, Token
from arriero.engine.local import LocalEngine
from arriero.errors import (
    ContextOverflow,
    EngineClosed,
    EngineDied,
    InvalidRequest,
    ModelLoadError,
    Overloaded,
    UnknownModel,
)
from arriero.runners.scripted import ScriptedRunner

END = 0


def scripted(**options) -> ScriptedRunner:
    return ScriptedRunner(**{"vocab_size": 60, "num_slots": 4, "context": 100, "end_token_id": END, **options})


def unwatched(request):
    return None


class Gate(ScriptedRunner):
    """Takes a step only when it is let: tests decide what happens while the model works."""

    def __init__(self, **options):
        super().__init__(**{"vocab_size": 60, "num_slots": 4, "context": 100, "end_token_id": END, **options})
        self.working = threading.Semaphore(0)
        self.may_go_on = threading.Semaphore(0)
        self.has_freed = threading.Semaphore(0)
        self.freed = []
        self.closed_in = None

    def step(self, rows):
        self.working.release()
        self.may_go_on.acquire()
        return super().step(rows)

    def free(self, slot):
        super().free(slot)
        self.freed.append(slot)
        self.has_freed.release()

    def close(self):
        super().close()
        self.closed_in = threading.current_thread().name

    async def reached(self):
        """A step has begun and waits."""
        await asyncio.to_thread(self.working.acquire)

    def let(self, steps=1):
        self.may_go_on.release(steps)


@contextlib.asynccontextmanager
async def running(runner=None, constraints=unwatched, grace=0.0, **options):
    engine = LocalEngine(lambda: runner or scripted(), constraints=constraints, **options)
    await engine.start()
    try:
        yield engine
    finally:
        if isinstance(runner, Gate):
            runner.let(10_000)
        await engine.close(grace)


def ask(*prompts, max_tokens=20, n=1, end=frozenset({END}), **options) -> GenerationRequest:
    return GenerationRequest(
        id="r",
        prompts=prompts or ((5, 6, 7),),
        max_tokens=max_tokens,
        num_choices=n,
        end_token_ids=end,
        **options,
    )


async def answer(engine, request):
    """All events, and the events come in lists that are never empty."""
    events = []
    async for batch in engine.generate(request):
        assert batch
        events += batch
    return events


async def drain(events):
    return [event async for batch in events for event in batch]


def said(events, index=0) -> list[int]:
    return [event.id for event in events if isinstance(event, Token) and event.index == index]


# Answers


async def test_an_answer():
    async with running() as engine:
        events = await answer(engine, ask())
    assert events == [Token(0, 5), Token(0, 6), Token(0, 7), Finished(0, "stop", 4, ending=Token(0, END))]


async def test_several_prompts_and_choices():
    async with running() as engine:
        events = await answer(engine, ask((5, 6), (8, 9), n=2, max_tokens=2, end=frozenset()))
    for index, tokens in enumerate([[5, 6], [5, 6], [8, 9], [8, 9]]):
        own = [event for event in events if event.index == index]
        assert own == [*(Token(index, token) for token in tokens), Finished(index, "length", 2)]


async def test_many_at_once_get_what_is_theirs():
    async with running() as engine:
        requests = [ask((1 + place % 50, 1 + place % 7), n=1 + place % 3) for place in range(60)]
        answers = await asyncio.gather(*(answer(engine, request) for request in requests))
        stats = engine.stats()
    for request, events in zip(requests, answers, strict=True):
        for index in range(request.num_choices):
            assert said(events, index) == list(request.prompts[0])
    assert stats.generated_tokens == sum(3 * request.num_choices for request in requests)
    assert stats.prompt_tokens == sum(len(request.prompts[0]) for request in requests)
    assert (stats.reserved_tokens, stats.num_slots) == (0, 4)


async def test_a_long_prompt_in_chunks():
    prompt = tuple(range(1, 50))
    async with running(chunk=7, chunk_beside_decode=3) as engine:
        first, second = await asyncio.gather(*(answer(engine, ask(prompt, max_tokens=50)) for _ in range(2)))
    assert said(first) == said(second) == list(prompt)


async def test_log_probabilities_for_who_asks():
    """The scripted runner leaves nothing to chance: what it says has probability 1."""
    async with running() as engine:
        asked, other = await asyncio.gather(answer(engine, ask(logprobs=2)), answer(engine, ask()))
    assert said(asked) == said(other) == [5, 6, 7]
    for event in asked[:-1]:
        assert event.logprob == Logprob(0.0, ((event.id, 0.0), (0, -100.0)))
    assert all(event.logprob is None for event in other[:-1])


async def test_log_probabilities_are_the_model_s_own():
    """Before temperature, penalties and bias."""
    sampling = Sampling(temperature=1.7, top_k=1, repetition_penalty=1.2, logit_bias=((5, -3.0),))
    async with running() as engine:
        events = await answer(engine, ask(logprobs=0, sampling=sampling))
    assert [event.logprob.value for event in events[:-1]] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("n", [1, 3])
async def test_a_prompt_is_scored_once_and_first(n):
    async with running(chunk=4) as engine:
        events = await answer(engine, ask(tuple(range(5, 15)), n=n, prompt_logprobs=1, max_tokens=2))
    scored = [event for event in events if isinstance(event, PromptScored)]
    assert scored == events[:1]
    assert scored[0].logprobs[0] is None
    # The scripted runner expects the first token everywhere.
    assert scored[0].logprobs[1:] == (Logprob(-100.0, ((5, 0.0),)),) * 9


async def test_scoring_alone_answers_nothing():
    async with running() as engine:
        events = await answer(engine, ask((5, 6, 5), n=2, prompt_logprobs=0, max_tokens=0))
        assert events == [
            PromptScored(0, (None, Logprob(-100.0), Logprob(0.0))),
            Finished(0, "length", 0),
            Finished(1, "length", 0),
        ]
        assert engine.stats().running == 0
        assert await answer(engine, ask((5, 6), max_tokens=0)) == [Finished(0, "length", 0)]


async def test_a_beam_search_gives_its_best_answers_at_the_end():
    async with running() as engine:
        searching = answer(engine, ask((5, 6, 7), n=2, beams=Beams(num_beams=3), sampling=Sampling(temperature=0)))
        events, other = await asyncio.gather(searching, answer(engine, ask()))
        assert engine.stats().running == 0
    assert said(other) == said(events) == [5, 6, 7]
    assert events[:4] == [Token(0, 5), Token(0, 6), Token(0, 7), Finished(0, "stop", 4, ending=Token(0, END))]
    assert isinstance(events[-1], Finished)


async def test_leaving_a_beam_search_frees_all_its_slots():
    runner = Gate()
    async with running(runner) as engine:
        task = asyncio.ensure_future(answer(engine, ask(max_tokens=50, beams=Beams(num_beams=4), end=frozenset())))
        for _ in range(3):
            await runner.reached()
            runner.let(1)
        await runner.reached()
        assert engine.stats().running == 4
        task.cancel()
        await asyncio.wait([task])
        assert engine.stats().running == 0
        runner.let(100)
        assert said(await answer(engine, ask())) == [5, 6, 7]


class Until:
    """A constraint that has enough when a token comes."""

    def __init__(self, token):
        self.token = token

    def accept(self, token):
        return token == self.token

    def copy(self):
        return Until(self.token)


async def test_a_constraint_ends_its_choice():
    """The token that completes it is still told: what to show of it is for others to decide."""

    def constraints(request):
        return Until(int(request.stop_strings[0])) if request.stop_strings else None

    async with running(constraints=constraints) as engine:
        stopped, free = await asyncio.gather(answer(engine, ask(n=2, stop_strings=("6",))), answer(engine, ask()))
    for index in range(2):
        own = [event for event in stopped if event.index == index]
        assert own == [Token(index, 5), Token(index, 6), Finished(index, "stop", 2)]
    assert said(free) == [5, 6, 7]


async def test_a_specification_that_does_not_compile_is_that_request_s_error():
    def constraints(request):
        if request.stop_strings:
            raise InvalidRequest("cannot be", param="stop")

    async with running(constraints=constraints) as engine:
        with pytest.raises(InvalidRequest, match="cannot be"):
            await answer(engine, ask(stop_strings=("x",)))
        assert said(await answer(engine, ask())) == [5, 6, 7]


async def test_what_can_never_run_is_refused():
    async with running() as engine:
        with pytest.raises(ContextOverflow) as caught:
            await answer(engine, ask(max_tokens=98))
        assert caught.value.param == "max_tokens"
        with pytest.raises(InvalidRequest) as refused:
            await answer(engine, ask(n=5))
        assert refused.value.param == "n"
        assert engine.stats() == EngineStats(num_slots=4, token_budget=400)


async def test_events_that_were_not_looked_at_come_together():
    runner = Gate()
    async with running(runner) as engine:
        events = engine.generate(ask())
        first = asyncio.ensure_future(anext(events))
        await runner.reached()
        runner.let(1)
        assert await first == [Token(0, 5)]
        runner.let(3)
        for _ in range(3):
            await runner.reached()
        await engine._thread._idle.wait()
        assert await anext(events) == [Token(0, 6), Token(0, 7), Finished(0, "stop", 4, ending=Token(0, END))]
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_the_loop_goes_on_while_the_model_works():
    runner = Gate()
    async with running(runner) as engine:
        task = asyncio.ensure_future(answer(engine, ask()))
        await runner.reached()
        assert engine.stats().running == 1
        other = engine.generate(ask())
        waiting = asyncio.ensure_future(anext(other))
        await asyncio.sleep(0)
        assert engine.stats().waiting == 1
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert engine.stats().waiting == 0
        runner.let(10)
        assert said(await task) == [5, 6, 7]


# Leaving


async def test_closing_the_iterator_frees_the_slot_before_the_next_step():
    runner = Gate()
    async with running(runner) as engine:
        events = engine.generate(ask())
        first = asyncio.ensure_future(anext(events))
        await runner.reached()
        runner.let(1)
        await first
        await runner.reached()  # the second step is being computed
        await events.aclose()
        assert engine.stats().running == 0
        other = asyncio.ensure_future(answer(engine, ask((8, 9))))
        await asyncio.sleep(0)
        assert runner.freed == []
        runner.let(1)
        await runner.reached()
        assert runner.freed == [0]
        runner.let(10)
        assert said(await other) == [8, 9]


async def test_cancelling_the_waiting_task_aborts():
    runner = Gate()
    async with running(runner) as engine:
        tasks = [asyncio.ensure_future(answer(engine, ask(n=2))) for _ in range(3)]
        await runner.reached()
        stats = engine.stats()
        assert (stats.running, stats.waiting) == (4, 1)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.reserved_tokens) == (0, 0, 0)


async def test_leaving_a_loop_over_events_aborts():
    async with running(scripted(pace=0.001)) as engine:
        async with contextlib.aclosing(engine.generate(ask(max_tokens=90, end=frozenset()))) as events:
            async for _ in events:
                break
        assert engine.stats().running == 0


async def test_an_abort_with_nobody_else_there_still_frees_the_runner_s_slot():
    runner = Gate()
    async with running(runner) as engine:
        task = asyncio.ensure_future(answer(engine, ask()))
        await runner.reached()
        task.cancel()
        await asyncio.wait([task])
        runner.let(1)
        await asyncio.to_thread(runner.has_freed.acquire)
        assert runner.freed == [0]
        assert engine.stats().steps == 1


async def test_an_iterator_that_was_never_looked_at_asks_for_nothing():
    async with running() as engine:
        events = engine.generate(ask())
        assert engine.stats() == EngineStats(num_slots=4, token_budget=400)
        await events.aclose()


# Overload


async def test_a_full_queue_is_said_at_the_first_look():
    runner = Gate()
    async with running(runner, max_queue=1) as engine:
        tasks = [asyncio.ensure_future(answer(engine, ask(n=4))) for _ in range(2)]
        await runner.reached()
        with pytest.raises(Overloaded) as caught:
            await anext(engine.generate(ask()))
        assert caught.value.retry_after > 0
        runner.let(100)
        assert [said(events) for events in await asyncio.gather(*tasks)] == [[5, 6, 7]] * 2
        assert said(await answer(engine, ask())) == [5, 6, 7]


async def test_a_burst_as_large_as_the_engine_is_no_overload():
    async with running(max_queue=0) as engine:
        answers = await asyncio.gather(*(answer(engine, ask()) for _ in range(4)))
        assert [said(events) for events in answers] == [[5, 6, 7]] * 4


async def test_answers_are_read_for_the_next_turn_when_nobody_asks():
    async with running(prefix_tokens=80) as engine:
        assert said(await answer(engine, ask((5,) * 30, max_tokens=20))) == [5] * 20
        async with asyncio.timeout(10):
            while engine.stats().kept_tokens < 50:  # noqa: ASYNC110  # nobody announces it
                await asyncio.sleep(0.005)
        events = await answer(engine, ask((*[5] * 50, 6, 7)))
        assert events[-1].cached_tokens == 50


async def test_the_token_budget_holds():
    runner = Gate()
    async with running(runner, token_budget=50) as engine:
        assert engine.context == 50
        tasks = [asyncio.ensure_future(answer(engine, ask(max_tokens=17))) for _ in range(3)]
        await runner.reached()
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.reserved_tokens) == (2, 1, 40)
        runner.let(100)
        await asyncio.gather(*tasks)


# Death


async def test_when_the_runner_fails_everybody_hears_of_it(caplog):
    async with running(scripted(fail_after=3)) as engine:
        outcomes = await asyncio.gather(
            *(answer(engine, ask(n=2, end=frozenset())) for _ in range(5)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [EngineDied] * 5
        assert len({id(outcome) for outcome in outcomes}) == 5
        with pytest.raises(EngineDied):
            await answer(engine, ask())
        with pytest.raises(EngineDied):
            engine.stats()
    assert "fail_after" in caplog.text


async def test_what_was_said_before_the_failure_is_not_lost():
    runner = Gate(fail_after=2)
    async with running(runner) as engine:
        events = engine.generate(ask())
        first = asyncio.ensure_future(anext(events))
        runner.let(3)
        assert (await first)[0] == Token(0, 5)
        with pytest.raises(EngineDied):
            await drain(events)


class Rubbish(ScriptedRunner):
    def step(self, rows):
        return super().step(rows) * float("nan")


async def test_logits_that_mean_nothing_end_the_engine(caplog):
    runner = Rubbish(vocab_size=60, num_slots=4, context=100, end_token_id=END)
    async with running(runner) as engine:
        with pytest.raises(EngineDied, match="not finite"):
            await answer(engine, ask())


async def test_a_runner_that_cannot_be_made(caplog):
    def missing():
        raise ModelLoadError("no such file")

    engine = LocalEngine(missing, constraints=unwatched)
    with pytest.raises(ModelLoadError, match="no such file"):
        await engine.start()
    with pytest.raises(EngineDied):
        await answer(engine, ask())
    await engine.close()


async def test_any_failure_to_make_the_runner_is_a_failure_to_load(caplog):
    def broken():
        raise MemoryError("4 GB")

    engine = LocalEngine(broken, constraints=unwatched)
    with pytest.raises(ModelLoadError, match="4 GB"):
        await engine.start()
    await engine.close()


# Closing


async def test_closing_ends_what_runs():
    others = set(threading.enumerate())
    runner = Gate()
    engine = LocalEngine(lambda: runner, constraints=unwatched)
    await engine.start()
    tasks = [asyncio.ensure_future(answer(engine, ask(n=3))) for _ in range(2)]
    await runner.reached()
    runner.let(1)
    await engine.close()
    assert [type(task.exception()) for task in (await asyncio.wait(tasks))[0]] == [EngineClosed] * 2
    assert runner.closed_in == "arriero-model"
    assert "arriero-model" not in {thread.name for thread in set(threading.enumerate()) - others}
    with pytest.raises(EngineDied, match="closed"):
        await answer(engine, ask())


async def test_closing_with_grace_lets_everybody_finish_and_nobody_in():
    runner = Gate()
    engine = LocalEngine(lambda: runner, constraints=unwatched)
    await engine.start()
    tasks = [asyncio.ensure_future(answer(engine, ask(n=3))) for _ in range(2)]  # the second waits for the first
    await runner.reached()
    closing = asyncio.ensure_future(engine.close(grace=100))
    await asyncio.sleep(0)
    with pytest.raises(EngineDied):
        await answer(engine, ask())
    runner.let(100)
    await closing
    assert [said(events) for events in await asyncio.gather(*tasks)] == [[5, 6, 7]] * 2


async def test_when_the_grace_is_over_the_rest_is_ended():
    runner = Gate()
    engine = LocalEngine(lambda: runner, constraints=unwatched)
    await engine.start()
    task = asyncio.ensure_future(answer(engine, ask()))
    await runner.reached()
    closing = asyncio.ensure_future(engine.close(grace=0.01))
    await asyncio.sleep(0.02)
    runner.let(100)
    await closing
    with pytest.raises(EngineDied):
        await task


async def test_a_slow_reader_gets_the_rest_after_the_engine_is_closed():
    engine = LocalEngine(scripted, constraints=unwatched)
    await engine.start()
    events = engine.generate(ask())
    got = await anext(events)
    await engine.close(grace=100)
    got += await drain(events)
    assert said(got) == [5, 6, 7]
    assert got[-1] == Finished(0, "stop", 4, ending=Token(0, END))


async def test_closing_is_idempotent_and_never_waits_for_itself():
    engine = LocalEngine(scripted, constraints=unwatched)
    await engine.start()
    await asyncio.gather(engine.close(), engine.close(1))
    await engine.close()
    assert engine.stats().running == 0


async def test_closing_what_was_never_started():
    engine = LocalEngine(scripted, constraints=unwatched)
    await engine.close()
    with pytest.raises(RuntimeError, match="once"):
        await engine.start()


async def test_closing_while_the_runner_is_being_made():
    go_on = threading.Event()

    def slow():
        go_on.wait()
        return scripted()

    engine = LocalEngine(slow, constraints=unwatched)
    starting = asyncio.ensure_future(engine.start())
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(engine.close())
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(starting, closing)
    with pytest.raises(EngineDied):
        await answer(engine, ask())


async def test_nobody_is_served_before_the_start():
    with pytest.raises(EngineDied, match="not started"):
        await answer(LocalEngine(scripted, constraints=unwatched), ask())


def test_engines_of_several_loops_one_after_another():
    async def once():
        async with running() as engine:
            return said(await answer(engine, ask()))

    assert [asyncio.run(once()) for _ in range(3)] == [[5, 6, 7]] * 3


def test_a_loop_that_is_gone_takes_its_engine_along():
    """Nobody closed the engine: its thread must end by itself, and quietly, when it has something to tell."""
    runner = Gate()
    loop = asyncio.new_event_loop()

    async def begin():
        engine = LocalEngine(lambda: runner, constraints=unwatched)
        await engine.start()
        task = asyncio.ensure_future(answer(engine, ask()))
        await runner.reached()
        return engine, task

    engine, task = loop.run_until_complete(begin())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    runner.let(100)
    engine._thread._thread.join()
    assert runner.closed_in == "arriero-model"
    task._log_destroy_pending = False


# Everything at once


@pytest.fixture
def restless():
    """Threads take turns a thousand times as often as usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("seed", range(3))
async def test_under_stress_nothing_is_lost(seed):
    """Many tasks, requests of all kinds, some refused, many given up at any moment: in the end all slots are back."""
    dice = random.Random(seed)
    outcomes = {"whole": 0, "left": 0, "cancelled": 0, "overloaded": 0}

    async def caller(engine):
        for _ in range(12):
            tokens = tuple(dice.randrange(1, 60) for _ in range(dice.randrange(1, 30)))
            request = ask(
                tokens, n=dice.choice([1, 1, 2, 4]), max_tokens=40, sampling=Sampling(temperature=dice.random())
            )
            try:
                await one(engine, request)
            except Overloaded:
                outcomes["overloaded"] += 1
                await asyncio.sleep(0.001)

    async def one(engine, request):
        kind = dice.random()
        if kind < 0.4:
            events = await answer(engine, request)
            assert all(said(events, index) == list(request.prompts[0]) for index in range(request.num_choices))
            outcomes["whole"] += 1
        elif kind < 0.7:
            async with contextlib.aclosing(engine.generate(request)) as batches:
                async for _ in batches:
                    if dice.random() < 0.3:
                        break
            outcomes["left"] += 1
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(dice.random() * 0.004):
                    await answer(engine, request)
            outcomes["cancelled"] += 1

    async with running(max_queue=20, token_budget=300, chunk=9, chunk_beside_decode=5) as engine:
        await asyncio.gather(*(caller(engine) for _ in range(40)))
        stats = engine.stats()
        assert (stats.waiting, stats.running, stats.reserved_tokens) == (0, 0, 0)
        assert said(await answer(engine, ask())) == [5, 6, 7]
        assert not engine._thread._streams
    assert all(outcomes.values()), outcomes


def test_what_crosses_the_seam_can_be_pickled():
    for thing in (ask(), Token(0, 1), Finished(0, "stop", 2), EngineStats(), Row(0, [1], 0)):
        assert pickle.loads(pickle.dumps(thing)) == thing
    error = pickle.loads(pickle.dumps(EngineDied("gone")))
    assert str(error) == "gone"
    error = pickle.loads(pickle.dumps(Overloaded("full", retry_after=3.5)))
    assert (type(error), str(error), error.retry_after) == (Overloaded, "full", 3.5)
    error = pickle.loads(pickle.dumps(UnknownModel("x")))
    assert (type(error), error.name, error.param) == (UnknownModel, "x", "model")
    error = pickle.loads(pickle.dumps(ContextOverflow("long", param="prompt", code="c")))
    assert (type(error), str(error), error.param, error.code) == (ContextOverflow, "long", "prompt", "c")
