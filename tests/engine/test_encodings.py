"""Inputs that are read for their states, beside answers: the scheduler's part, and the engine's as callers know it."""

import asyncio
import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arriero.compute import Row, RunnerInfo
from arriero.core import Encoded, EncodingRequest, Finished, GenerationRequest, Token
from arriero.engine.encodings import LEAST_COST
from arriero.engine.local import LocalEngine, execute
from arriero.engine.scheduler import Scheduler
from arriero.errors import ContextOverflow, EngineDied, InvalidRequest, Overloaded
from arriero.runners.scripted import ScriptedRunner

END = 0


def scripted(**options) -> ScriptedRunner:
    return ScriptedRunner(**{"vocab_size": 60, "num_slots": 4, "context": 100, "end_token_id": END, **options})


def inputs_of(*lengths) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple((7 * place + offset) % 60 for offset in range(length)) for place, length in enumerate(lengths))


def ask(*lengths) -> EncodingRequest:
    return EncodingRequest(id="e", inputs=inputs_of(*lengths))


def generation(length=3, max_tokens=10, n=1) -> GenerationRequest:
    return GenerationRequest(id="r", prompts=((5,) * length,), max_tokens=max_tokens, num_choices=n)


def alone(request: EncodingRequest) -> np.ndarray:
    """The means of each input's states, read at once."""
    runner = scripted()
    rows = []
    for tokens in request.inputs:
        rows.append(runner.states(Row(0, tokens, 0)).mean(axis=0))
        runner.free(0)
    return np.array(rows)


class Simulation:
    """A scheduler and the scripted runner, which watches the protocol."""

    def __init__(
        self, runner=None, *, chunk=64, chunk_beside_decode=40, token_budget=400, max_queue=10, **more
    ) -> None:
        self.runner = runner or scripted()
        self.scheduler = Scheduler(
            self.runner.info,
            token_budget=token_budget,
            max_queue=max_queue,
            chunk=chunk,
            chunk_beside_decode=chunk_beside_decode,
            **more,
        )
        self.events = []

    def step(self):
        """One step; None when there was nothing to do."""
        step = self.scheduler.schedule()
        if step:
            self.events += self.scheduler.update(step, execute(self.runner, step))
        return step

    def run(self) -> list:
        """All steps until there is nothing to do."""
        steps = []
        while step := self.step():
            steps.append(step)
        return steps

    def vectors(self, encoding) -> np.ndarray:
        (found,) = [event.vectors for handle, event in self.events if handle is encoding]
        return found


def read(step) -> list[tuple[int, int, int]]:
    """Which input, from where, how much."""
    return [(reading.input, reading.row.position, len(reading.row.tokens)) for reading in step.readings]


def near(actual, expected) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


# The scheduler


def test_one_slot_reads_input_after_input_and_is_free_at_the_end():
    simulation = Simulation()
    request = ask(40, 90, 1, 1)
    encoding = simulation.scheduler.submit_encoding(request)
    steps = simulation.run()
    assert [read(step) for step in steps] == [[(0, 0, 40)], [(1, 0, 64)], [(1, 64, 26), (2, 0, 1)], [(3, 0, 1)], []]
    assert {reading.row.slot for step in steps for reading in step.readings} == {0}
    near(simulation.vectors(encoding), alone(request))
    assert steps[-1].frees == [0]
    stats = simulation.scheduler.stats()
    assert (stats.running, stats.reserved_tokens, stats.prompt_tokens) == (0, 0, 132)


def test_hundreds_of_inputs_need_one_slot():
    simulation = Simulation(scripted(num_slots=1))
    request = ask(*(1 + place % 20 for place in range(500)))
    encoding = simulation.scheduler.submit_encoding(request)
    simulation.run()
    near(simulation.vectors(encoding), alone(request))


def test_those_who_encode_take_turns():
    simulation = Simulation(chunk=LEAST_COST)
    first, second = (simulation.scheduler.submit_encoding(ask(*[10] * count)) for count in (5, 2))
    order = [reading.encoding for step in simulation.run() for reading in step.readings]
    assert order == [first, second, first, second, first, first, first]


def test_prompts_and_inputs_go_first_in_turns():
    simulation = Simulation(chunk=40)
    simulation.scheduler.submit_encoding(ask(*[35] * 4))
    simulation.scheduler.submit(generation(80, max_tokens=1))
    steps = simulation.run()
    assert [(len(step.rows), len(step.readings)) for step in steps[:5]] == [(0, 1), (1, 0), (0, 1), (1, 0), (0, 1)]


def test_inputs_share_the_room_beside_answers():
    simulation = Simulation(chunk=100, chunk_beside_decode=LEAST_COST)
    simulation.scheduler.submit(generation(3, max_tokens=50))
    simulation.step()
    simulation.scheduler.submit_encoding(ask(90, 4))
    steps = [simulation.step() for _ in range(4)]
    assert [read(step) for step in steps] == [[(0, 0, 32)], [(0, 32, 32)], [(0, 64, 26)], [(1, 0, 4)]]
    assert all(len(step.rows) == 1 for step in steps)


def test_an_input_is_not_cut_below_what_the_runner_takes():
    info = RunnerInfo(
        num_slots=1,
        context=100,
        vocab_size=60,
        bytes_per_token=8,
        invariant=True,
        min_prompt_chunk=8,
        hidden_size=2,
    )
    scheduler = Scheduler(info, token_budget=100, max_queue=1, chunk=40)
    scheduler.submit_encoding(ask(45))
    step = scheduler.schedule()
    assert read(step) == [(0, 0, 37)]


def test_an_encoding_waits_its_turn_for_a_slot_and_tokens():
    simulation = Simulation(scripted(num_slots=1))
    answer = simulation.scheduler.submit(generation(max_tokens=3))
    encoding = simulation.scheduler.submit_encoding(ask(5))
    assert simulation.scheduler.stats().waiting == 2
    simulation.run()
    assert [type(event) for handle, event in simulation.events] == [Token] * 3 + [Finished, Encoded]
    assert simulation.events[-1][0] is encoding
    assert simulation.events[0][0] is answer


def test_it_tells_how_long_it_waited():
    now = 5.0
    simulation = Simulation(scripted(num_slots=1), clock=lambda: now)
    simulation.scheduler.submit(generation(max_tokens=1))
    simulation.scheduler.submit_encoding(ask(5, 5))
    simulation.step()
    now = 7.0
    simulation.run()
    (encoded,) = [event for _, event in simulation.events if isinstance(event, Encoded)]
    assert encoded.queue_seconds == 2.0


def test_aborted_before_while_and_after():
    simulation = Simulation(chunk=LEAST_COST)
    reading, waiting, staying = (simulation.scheduler.submit_encoding(ask(30, 30, 30)) for _ in range(3))
    simulation.scheduler.abort(waiting)
    step = simulation.scheduler.schedule()
    results = execute(simulation.runner, step)
    simulation.scheduler.abort(reading)
    simulation.scheduler.update(step, results)
    simulation.run()
    assert [handle for handle, _ in simulation.events] == [staying]
    simulation.scheduler.abort(staying)
    stats = simulation.scheduler.stats()
    assert (stats.running, stats.waiting, stats.reserved_tokens) == (0, 0, 0)
    assert simulation.scheduler.schedule() is None


def test_aborted_while_its_last_input_is_read():
    simulation = Simulation()
    encoding = simulation.scheduler.submit_encoding(ask(5))
    step = simulation.scheduler.schedule()
    simulation.scheduler.abort(encoding)
    assert simulation.scheduler.update(step, execute(simulation.runner, step)) == []
    assert simulation.scheduler.stats().running == 0


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        ((), InvalidRequest),
        (((1, 2), ()), InvalidRequest),
        (((1, 60),), InvalidRequest),
        (((-1,),), InvalidRequest),
        (((1,), (1,) * 101), ContextOverflow),
    ],
)
def test_what_can_never_run_is_refused_by_name(inputs, error):
    with pytest.raises(error) as refused:
        Simulation().scheduler.submit_encoding(EncodingRequest(id="e", inputs=inputs))
    assert refused.value.param == "input"


def test_an_input_may_not_be_longer_than_the_budget():
    with pytest.raises(ContextOverflow, match="input 1 has 51"):
        Simulation(token_budget=50).scheduler.submit_encoding(ask(50, 51))


def test_a_model_without_states_is_told():
    with pytest.raises(InvalidRequest) as refused:
        Simulation(scripted(hidden_size=0)).scheduler.submit_encoding(ask(3))
    assert refused.value.param == "model"


def test_a_full_queue_is_an_overload():
    simulation = Simulation(scripted(num_slots=1), max_queue=1)
    for _ in range(2):
        simulation.scheduler.submit_encoding(ask(3))
    with pytest.raises(Overloaded):
        simulation.scheduler.submit_encoding(ask(3))


@given(
    requests=st.lists(
        st.one_of(
            st.lists(st.integers(1, 90), min_size=1, max_size=8),
            st.tuples(st.integers(1, 60), st.integers(1, 8), st.integers(1, 2)),
        ),
        min_size=1,
        max_size=8,
    ),
    aborts=st.sets(st.integers(0, 7)),
    chunk=st.integers(1, 80),
    beside=st.integers(1, 80),
    num_slots=st.integers(2, 4),
    pauses=st.lists(st.integers(0, 3), min_size=8, max_size=8),
)
def test_everybody_gets_what_they_get_alone(requests, aborts, chunk, beside, num_slots, pauses):
    """However answers, inputs, aborts and chunks come together; and in the end everything is free."""
    simulation = Simulation(
        scripted(num_slots=num_slots), chunk=chunk, chunk_beside_decode=beside, token_budget=200, max_queue=100
    )
    submitted = {}
    for place, (asked, pause) in enumerate(zip(requests, pauses, strict=False)):
        if isinstance(asked, list):
            handle = simulation.scheduler.submit_encoding(ask(*asked))
        else:
            handle = simulation.scheduler.submit(generation(*asked))
        submitted[place] = handle
        for _ in range(pause):
            simulation.step()
    ended = {handle for handle, event in simulation.events if isinstance(event, Encoded | Finished)}
    dropped = {submitted[place] for place in aborts & submitted.keys()} - ended
    for handle in dropped:
        simulation.scheduler.abort(handle)
    while simulation.step():
        assert simulation.scheduler.stats().reserved_tokens <= 200
    for place, handle in submitted.items():
        if handle in dropped:
            continue
        if isinstance(requests[place], list):
            near(simulation.vectors(handle), alone(handle.request))
        else:
            finished = [event for each, event in simulation.events if each is handle and isinstance(event, Finished)]
            assert len(finished) == requests[place][2]
    stats = simulation.scheduler.stats()
    assert (stats.running, stats.waiting, stats.reserved_tokens) == (0, 0, 0)
    assert all(not slot.tokens for slot in simulation.runner._slots)


# The engine


@contextlib.asynccontextmanager
async def running(runner=None, **options):
    engine = LocalEngine(lambda: runner or scripted(), constraints=lambda request: None, **options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def answer(engine, request):
    return [event async for batch in engine.generate(request) for event in batch]


async def test_vectors_in_the_order_of_the_inputs():
    request = ask(5, 70, 1, 30)
    async with running(chunk=16) as engine:
        vectors = (await engine.encode(request)).vectors
    assert vectors.dtype == np.float32
    near(vectors, alone(request))


async def test_many_at_once_beside_answers():
    requests = [ask(*(1 + (place + each) % 50 for each in range(place % 7 + 1))) for place in range(30)]
    async with running(chunk=20, chunk_beside_decode=8) as engine:
        answers = asyncio.gather(*(answer(engine, generation(max_tokens=20)) for _ in range(10)))
        vectors = await asyncio.gather(*(engine.encode(request) for request in requests))
        for events in await answers:
            assert [event.id for event in events if isinstance(event, Token)][:3] == [5, 5, 5]
        stats = engine.stats()
    for request, found in zip(requests, vectors, strict=True):
        near(found.vectors, alone(request))
    assert (stats.running, stats.reserved_tokens) == (0, 0)


async def test_cancelling_drops_what_is_left():
    async with running(scripted(pace=0.01, num_slots=1)) as engine:
        task = asyncio.create_task(engine.encode(ask(*[90] * 1000)))
        while not engine.stats().prompt_tokens:  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        near((await engine.encode(ask(3))).vectors, alone(ask(3)))
        stats = engine.stats()
    assert stats.running == 0
    assert stats.prompt_tokens < 90_000


async def test_an_engine_that_dies_says_so():
    async with running(scripted(fail_after=2)) as engine:
        with pytest.raises(EngineDied):
            await engine.encode(ask(*[90] * 20))


async def test_closing_ends_it():
    async with running(scripted(pace=0.01)) as engine:
        task = asyncio.create_task(engine.encode(ask(*[90] * 1000)))
        await asyncio.sleep(0.05)
        await engine.close()
        with pytest.raises(EngineDied):
            await task
