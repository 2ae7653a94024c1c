"""Batches by length over all callers, and the engine that computes them."""

import asyncio
import contextlib
import pickle
import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arriero.compute import EncoderInfo
from arriero.core import EncodingRequest, GenerationRequest
from arriero.engine.batches import Batches
from arriero.engine.encoder import EncodingEngine
from arriero.errors import ContextOverflow, EngineDied, InvalidRequest, ModelLoadError, Overloaded

INFO = EncoderInfo(context=50, vocab_size=60, width=3, invariant=True)


class Lengths:
    """An encoder whose vectors tell the input's length, its first segment and its first token."""

    info = INFO

    def __init__(self, fail_after=None):
        self.batches = []
        self.closed_in = None
        self._left = fail_after

    def encode(self, inputs, first_segments):
        if self._left is not None:
            if self._left == 0:
                raise RuntimeError("as asked")
            self._left -= 1
        self.batches.append([len(tokens) for tokens in inputs])
        return np.array(
            [(len(tokens), first, tokens[0]) for tokens, first in zip(inputs, first_segments, strict=True)], np.float32
        )

    def close(self):
        self.closed_in = threading.current_thread().name


def ask(*lengths, first_segments=(), **more):
    inputs = tuple((place % 60,) * length for place, length in enumerate(lengths))
    return EncodingRequest(id="e", inputs=inputs, first_segments=first_segments, **more)


def expected(request):
    segments = request.first_segments or [len(tokens) for tokens in request.inputs]
    return [[len(tokens), first, tokens[0]] for tokens, first in zip(request.inputs, segments, strict=True)]


def make(batch_tokens=100, max_queue=1000, clock=lambda: 0.0):
    return Batches(INFO, batch_tokens=batch_tokens, max_queue=max_queue, clock=clock)


def compute(batches, batch):
    return batches.update(batch, Lengths().encode([e.tokens for e in batch], [e.first_segment for e in batch]))


def lengths(batch):
    return [len(each.tokens) for each in batch]


# Batches


def test_the_oldest_and_those_nearest_in_length_go_together():
    batches = make(batch_tokens=40)
    batches.submit(ask(10, 50, 11, 9, 3))
    batches.submit(ask(10, 12))
    assert lengths(batches.schedule()) == [10, 10, 11]
    assert lengths(batches.schedule()) == [50]
    assert lengths(batches.schedule()) == [9, 12, 3]
    assert batches.schedule() is None


def test_a_batch_counts_its_padding():
    batches = make(batch_tokens=40)
    batches.submit(ask(2, 20, 2))
    assert lengths(batches.schedule()) == [2, 2]
    assert lengths(batches.schedule()) == [20]


def test_requests_are_complete_when_their_last_input_is():
    batches = make(batch_tokens=20)
    long, short = batches.submit(ask(20, 5)), batches.submit(ask(5))
    assert compute(batches, batches.schedule()) == []
    ((first, one), (second, other)) = compute(batches, batches.schedule())
    assert (first, second) == (long, short)
    assert one.vectors.tolist() == expected(long.request)
    assert other.vectors.tolist() == expected(short.request)


def test_a_request_waits_until_its_first_input_is_read():
    now = 5.0
    batches = make(batch_tokens=20, clock=lambda: now)
    batches.submit(ask(20, 20))
    now = 7.0
    assert compute(batches, batches.schedule()) == []
    now = 12.0
    ((_, encoded),) = compute(batches, batches.schedule())
    assert encoded.queue_seconds == 2.0


def test_what_is_aborted_is_not_computed_and_what_comes_of_it_is_ignored():
    batches = make(batch_tokens=20)
    job, other = batches.submit(ask(10, 10, 10)), batches.submit(ask(10))
    batch = batches.schedule()
    batches.abort(job)
    assert compute(batches, batch) == []
    ((handle, _),) = compute(batches, batches.schedule())
    assert handle is other
    batches.abort(other)
    assert batches.schedule() is None
    assert batches.stats().waiting == 0


def test_a_full_queue_is_an_overload_but_an_idle_encoder_takes_one():
    batches = make(max_queue=0)
    batches.submit(ask(5))
    with pytest.raises(Overloaded):
        batches.submit(ask(5))
    batch = batches.schedule()
    with pytest.raises(Overloaded):
        batches.submit(ask(5))
    compute(batches, batch)
    batches.submit(ask(5))


def test_one_beside_many_is_next():
    batches = make(batch_tokens=50)
    for _ in range(50):
        batches.submit(ask(50, 50, caller="many"))
    batches.schedule()
    one = batches.submit(ask(50, caller="one"))
    assert one in [batches.schedule()[0].job for _ in range(2)]


def shares(batches, num_batches):
    """Tokens that were read for each caller."""
    read = Counter()
    for _ in range(num_batches):
        for each in batches.schedule():
            read[each.job.request.caller] += len(each.tokens)
    return read


@pytest.mark.parametrize("length", [20, 10])
def test_callers_share_by_weight_whatever_the_length_of_their_inputs(length):
    """Of one length they share batches, of two they take turns."""
    batches = make(batch_tokens=100)
    batches.submit(ask(*[20] * 300, caller="light"))
    batches.submit(ask(*[length] * 600, caller="heavy", weight=2.0))
    read = shares(batches, 30)
    assert read.total() == 30 * 100
    assert read["heavy"] == pytest.approx(2 * read["light"], abs=200)


def test_who_joins_a_batch_pays():
    batches = make(batch_tokens=100)
    batches.submit(ask(*[10] * 100, caller="a"))
    batches.submit(ask(20, *[10] * 100, caller="b"))
    read = shares(batches, 15)
    assert abs(read["a"] - read["b"]) <= 100


def test_priority_orders_ones_own_requests_alone():
    batches = make(batch_tokens=10)
    jobs = [batches.submit(ask(10, caller="a", priority=priority)) for priority in (5, 0, -5)]
    other = batches.submit(ask(10, caller="b", priority=100))
    order = [batches.schedule()[0].job for _ in range(4)]
    assert order.index(other) == 1
    order.remove(other)
    assert order == jobs[::-1]


def test_a_full_queue_has_room_for_who_has_none_in_it():
    batches = make(batch_tokens=10, max_queue=4)
    for _ in range(4):
        batches.submit(ask(10, caller="many"))
    with pytest.raises(Overloaded):
        batches.submit(ask(10, caller="many"))
    batches.submit(ask(10, caller="one"))
    assert batches.stats().waiting == 5


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (ask(), InvalidRequest),
        (ask(0), InvalidRequest),
        (EncodingRequest(id="e", inputs=((60,),)), InvalidRequest),
        (ask(3, first_segments=(1, 2)), InvalidRequest),
        (ask(50, 51), ContextOverflow),
    ],
)
def test_what_can_never_run_is_refused(request_, error):
    with pytest.raises(error) as refused:
        make().submit(request_)
    assert refused.value.param == "input"


@given(
    requests=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=10), min_size=1, max_size=12),
    aborts=st.sets(st.integers(0, 11)),
    pauses=st.lists(st.integers(0, 2), min_size=12, max_size=12),
    batch_tokens=st.integers(1, 120),
)
def test_everybody_gets_what_is_theirs_and_the_oldest_first(requests, aborts, pauses, batch_tokens):
    batches = make(batch_tokens)
    jobs, done, arrived = [], {}, []

    def step():
        waiting = [each for each in arrived if each in each.job.waiting]
        batch = batches.schedule()
        if batch is None:
            assert not waiting
            return False
        assert batch[0] is waiting[0]
        assert len(batch) == 1 or max(lengths(batch)) * len(batch) <= batch_tokens
        # Nobody is left out who is nearer in length, or as near and older, than one who was taken.
        left = [each for each in waiting if each not in batch]
        farthest = max(abs(length - len(batch[0].tokens)) for length in lengths(batch))
        assert all(abs(len(each.tokens) - len(batch[0].tokens)) >= farthest for each in left)
        for each in batch:
            assert all(waiting.index(each) < waiting.index(o) for o in left if len(o.tokens) == len(each.tokens))
        for job, event in compute(batches, batch):
            assert job not in done
            done[job] = event.vectors
        return True

    for place, asked in enumerate(requests):
        job = batches.submit(ask(*asked))
        jobs.append(job)
        arrived.extend(job.waiting)
        for _ in range(pauses[place]):
            step()
    dropped = [job for place, job in enumerate(jobs) if place in aborts and job not in done]
    for job in dropped:
        batches.abort(job)
    while step():
        pass
    assert set(done) == set(jobs) - set(dropped)
    for job, vectors in done.items():
        assert vectors.tolist() == expected(job.request)
    assert (batches.stats().waiting, batches._lengths, batches._by_length, len(batches._queue)) == (0, [], {}, 0)


@given(
    requests=st.lists(
        st.tuples(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.sampled_from("abc"), st.integers(-1, 1)),
        min_size=1,
        max_size=12,
    ),
    aborts=st.sets(st.integers(0, 11)),
    batch_tokens=st.integers(1, 120),
)
def test_nothing_of_anybodys_is_lost(requests, aborts, batch_tokens):
    batches = make(batch_tokens)
    jobs = [
        batches.submit(ask(*asked, caller=caller, weight=1.0 + ord(caller) % 2, priority=priority))
        for asked, caller, priority in requests
    ]
    done = dict(compute(batches, batches.schedule()))
    dropped = [job for place, job in enumerate(jobs) if place in aborts and job not in done]
    for job in dropped:
        batches.abort(job)
    while batch := batches.schedule():
        done.update(compute(batches, batch))
    assert done.keys() == set(jobs) - set(dropped)
    assert all(encoded.vectors.tolist() == expected(job.request) for job, encoded in done.items())
    assert (batches.stats().waiting, batches._lengths, batches._by_length, len(batches._queue)) == (0, [], {}, 0)


# The engine


@contextlib.asynccontextmanager
async def running(encoder=None, **options):
    engine = EncodingEngine(lambda: encoder or Lengths(), **options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def test_many_callers_share_batches_and_get_what_is_theirs():
    encoder = Lengths()
    requests = [ask(*(1 + (7 * place + each) % 50 for each in range(1 + place % 9))) for place in range(40)]
    async with running(encoder, batch_tokens=200) as engine:
        assert engine.context == 50
        found = await asyncio.gather(*(engine.encode(request) for request in requests))
        stats = engine.stats()
    for request, vectors in zip(requests, (each.vectors for each in found), strict=True):
        assert vectors.dtype == np.float32
        assert vectors.tolist() == expected(request)
    assert stats.prompt_tokens == sum(len(tokens) for request in requests for tokens in request.inputs)
    assert stats.steps == len(encoder.batches) < len(requests)
    assert encoder.closed_in == "arriero-model"


async def test_first_segments_reach_the_encoder():
    async with running() as engine:
        request = ask(5, 9, first_segments=(2, 4))
        assert (await engine.encode(request)).vectors.tolist() == expected(request)


class Gate(Lengths):
    """Computes when it is let."""

    def __init__(self):
        super().__init__()
        self.working, self.may_go_on = threading.Semaphore(0), threading.Semaphore(0)

    def encode(self, inputs, first_segments):
        self.working.release()
        self.may_go_on.acquire()
        return super().encode(inputs, first_segments)


async def test_cancelling_drops_what_is_left():
    encoder = Gate()
    async with running(encoder, batch_tokens=50) as engine:
        task = asyncio.create_task(engine.encode(ask(*[50] * 100)))
        await asyncio.to_thread(encoder.working.acquire)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        encoder.may_go_on.release(2)
        assert (await engine.encode(ask(3))).vectors.tolist() == expected(ask(3))
    assert encoder.batches == [[50], [3]]


async def test_an_engine_that_dies_says_so_now_and_later():
    async with running(Lengths(fail_after=1), batch_tokens=50) as engine:
        for _ in range(2):
            with pytest.raises(EngineDied):
                await engine.encode(ask(50, 50))
        with pytest.raises(EngineDied):
            engine.stats()


async def test_an_encoder_that_cannot_be_made():
    def fail():
        raise ValueError("no such file")

    with pytest.raises(ModelLoadError, match="no such file"):
        await EncodingEngine(fail).start()


async def test_closing_lets_requests_finish_if_there_is_time():
    engine = EncodingEngine(Lengths)
    await engine.start()
    task = asyncio.create_task(engine.encode(ask(3)))
    await asyncio.sleep(0)
    await engine.close(grace=5.0)
    assert (await task).vectors.tolist() == expected(ask(3))
    with pytest.raises(EngineDied, match="closed"):
        await engine.encode(ask(3))


async def test_it_has_nothing_to_say():
    async with running() as engine:
        request = GenerationRequest(id="r", prompts=((1,),), max_tokens=1)
        with pytest.raises(InvalidRequest) as refused:
            async for _ in engine.generate(request):
                pass
        assert refused.value.param == "model"


async def test_what_crosses_the_seam_can_be_pickled():
    async with running() as engine:
        request = ask(3, 4)
        found = await engine.encode(pickle.loads(pickle.dumps(request)))
    assert pickle.loads(pickle.dumps(found)).vectors.tolist() == expected(request)
