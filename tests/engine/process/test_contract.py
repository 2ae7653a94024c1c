"""What every `core.Engine` does, asked of one on a thread, one on the event loop, and one in a child process."""

import asyncio
import contextlib
import sys
from pathlib import Path

import numpy as np
import pytest

from arriero.core import (
    Beams,
    EncodingRequest,
    EngineStats,
    Finished,
    GenerationRequest,
    PromptScored,
    Sampling,
    Token,
)
from arriero.engine.process.supervisor import ProcessEngine
from arriero.errors import ContextOverflow, EngineClosed, EngineDied, InvalidRequest, Overloaded
from engine.process.opening import END, make

COMMAND = (sys.executable, str(Path(__file__).with_name("opening.py")))


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
    return [event async for events in engine.generate(request) for event in events]


async def the_rest(events):
    return [event async for news in events for event in news]


def tokens(events, index=0):
    return [event.id for event in events if isinstance(event, Token) and event.index == index]


@pytest.fixture(params=["thread", "loop", "child"])
async def opened(request):
    async with contextlib.AsyncExitStack() as stack:

        async def start(**order):
            if request.param == "loop":
                order["engine"] = {**order.get("engine", {}), "thread": False}
            engine = ProcessEngine(COMMAND, order) if request.param == "child" else make(order)
            await engine.start()
            stack.push_async_callback(engine.close)
            return engine

        yield start


async def until(engine, condition):
    """Wait for what the model thread brings about."""
    async with asyncio.timeout(60):
        while not condition(engine.stats()):  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0.005)


async def test_it_tells_what_it_can_and_how_it_is(opened):
    engine = await opened()
    assert (engine.context, engine.source_context, engine.state) == (100, 0, "ready")
    assert engine.stats() == EngineStats(num_slots=4, token_budget=400)
    assert await answer(engine, ask()) == [
        Token(0, 5),
        Token(0, 6),
        Token(0, 7),
        Finished(0, "stop", 4, 0, Token(0, END)),
    ]
    await until(engine, lambda stats: stats.running == 0)
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.generated_tokens, stats.restarts) == (3, 4, 0)
    await engine.close()
    assert engine.state == "closed"


async def test_many_at_once_get_what_is_theirs(opened):
    engine = await opened()
    prompts = [tuple(range(1, 2 + number % 7)) for number in range(30)]
    answers = await asyncio.gather(*(answer(engine, ask(prompt)) for prompt in prompts))
    assert [tuple(tokens(events)) for events in answers] == prompts


async def test_several_prompts_and_choices(opened):
    events = await answer(await opened(), ask((1, 2), (3, 4, 5), n=2))
    assert [tokens(events, index) for index in range(4)] == [[1, 2], [1, 2], [3, 4, 5], [3, 4, 5]]
    assert sorted(event.index for event in events if isinstance(event, Finished)) == [0, 1, 2, 3]


async def test_log_probabilities_and_beams(opened):
    engine = await opened()
    events = await answer(engine, ask(logprobs=2, prompt_logprobs=1))
    assert isinstance(events[0], PromptScored)
    assert all(len(event.logprob.top) == 2 for event in events if isinstance(event, Token))
    events = await answer(engine, ask(beams=Beams(num_beams=2), sampling=Sampling(temperature=0.0)))
    assert isinstance(events[-1], Finished)


async def test_vectors(opened):
    engine = await opened(hidden_size=8)
    vectors = (await engine.encode(EncodingRequest(id="e", inputs=((1, 2, 3), (4,), (1, 2, 3))))).vectors
    assert vectors.shape == (3, 8)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors[0], vectors[2])


async def test_what_cannot_be_is_refused_as_itself(opened):
    engine = await opened(engine={"max_queue": 0})
    with pytest.raises(ContextOverflow):
        await answer(engine, ask(max_tokens=98))
    with pytest.raises(InvalidRequest) as refused:
        await answer(engine, ask((5, 60)))
    assert refused.value.param is not None or "60" in str(refused.value)
    with pytest.raises(InvalidRequest):
        await engine.encode(EncodingRequest(id="e", inputs=((1,), (60,))))
    assert engine.state == "ready"


async def test_a_full_queue_is_said_at_the_first_look(opened):
    engine = await opened(pace=0.02, engine={"max_queue": 1})
    asked = [asyncio.create_task(answer(engine, ask(end=frozenset(), max_tokens=50))) for _ in range(4)]
    await until(engine, lambda stats: stats.running == 4)
    asked.append(asyncio.create_task(answer(engine, ask())))
    await until(engine, lambda stats: stats.waiting == 1)
    with pytest.raises(Overloaded) as refused:
        await answer(engine, ask())
    assert refused.value.retry_after > 0
    for task in asked:
        task.cancel()
    await until(engine, lambda stats: stats.running == stats.waiting == 0)


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_leaving_frees_the_slots(opened, how):
    engine = await opened(pace=0.02)
    request = ask(end=frozenset(), max_tokens=90, n=4)
    events = engine.generate(request)
    await anext(events)
    if how == "close":
        await events.aclose()
    else:
        task = asyncio.create_task(anext(events))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await events.aclose()
    await until(engine, lambda stats: stats.running == stats.reserved_tokens == 0)
    assert tokens(await answer(engine, ask())) == [5, 6, 7]


async def test_an_iterator_that_was_never_looked_at_asks_for_nothing(opened):
    engine = await opened()
    await engine.generate(ask()).aclose()
    assert engine.stats().prompt_tokens == 0


async def test_closing_with_grace_lets_everybody_finish_and_nobody_in(opened):
    engine = await opened(pace=0.02)
    running = asyncio.create_task(answer(engine, ask()))
    await until(engine, lambda stats: stats.running == 1)
    closing = asyncio.create_task(engine.close(grace=30))
    await asyncio.sleep(0)
    with pytest.raises(EngineClosed, match="closed"):
        await answer(engine, ask())
    assert tokens(await running) == [5, 6, 7]
    await closing
    await engine.close()


async def test_when_the_grace_is_over_the_rest_is_ended(opened):
    engine = await opened(pace=0.02)
    events = engine.generate(ask(end=frozenset(), max_tokens=90))
    await anext(events)
    await engine.close(grace=0.01)
    with pytest.raises(EngineClosed, match="closed"):
        await the_rest(events)


async def test_nobody_is_served_before_the_start_and_it_starts_once(opened):
    engine = await opened()
    with pytest.raises(RuntimeError):
        await engine.start()
    other = make({})
    with pytest.raises(EngineDied):
        await answer(other, ask())


async def test_nobody_is_woken_for_what_is_told_in_one_piece(opened):
    engine = await opened()
    news = [events async for events in engine.generate(ask((5, 6, 7, 8, 9), streamed=False))]
    assert 1 <= len(news) <= 2
    assert tokens([event for events in news for event in events]) == [5, 6, 7, 8, 9]


async def test_what_was_sampled_for_a_request_that_is_broken_off_is_told(opened):
    engine = await opened(pace=0.01)
    told = []

    async def read():
        async for events in engine.generate(ask((5,) * 10, max_tokens=80, streamed=False)):
            told.extend(events)

    reading = asyncio.create_task(read())
    await until(engine, lambda stats: stats.generated_tokens >= 4)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert 3 <= len(told) < 80
    await until(engine, lambda stats: not stats.running)
