"""Requests to an encoder-decoder: what is encoded when, what counts as prompt, what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arriero.compute import Row, Want
from arriero.core import Beams, Finished, GenerationRequest, Sampling, Token
from arriero.engine.local import LocalEngine, execute
from arriero.engine.scheduler import Scheduler
from arriero.errors import ContextOverflow, InvalidRequest
from arriero.runners.scripted import ScriptedRunner

END, START, FORCED = 0, 1, 2
SOURCE_CONTEXT, CONTEXT = 30, 12


def make_runner(**settings):
    return ScriptedRunner(
        vocab_size=50,
        num_slots=4,
        context=CONTEXT,
        end_token_id=END,
        source_context=SOURCE_CONTEXT,
        decoder_start=(START, FORCED),
        **settings,
    )


def make_scheduler(runner, **settings):
    return Scheduler(runner.info, **{"token_budget": 200, "max_queue": 10, **settings})


def ask(*prompts, max_tokens=5, n=1, **options):
    greedy = Sampling(temperature=0.0)
    return GenerationRequest(
        id="r",
        prompts=prompts,
        max_tokens=max_tokens,
        num_choices=n,
        end_token_ids=frozenset({END}),
        **{"sampling": greedy, **options},
    )


def run(scheduler, runner):
    """Every step until nothing is left, and all that happened."""
    steps, happened = [], []
    while step := scheduler.schedule():
        steps.append(step)
        happened += scheduler.update(step, execute(runner, step))
    return steps, happened


def said(happened, index):
    return [event.id for _, event in happened if isinstance(event, Token) and event.index == index]


def test_a_prompt_is_encoded_and_the_answer_begins_with_what_the_model_says():
    runner = make_runner()
    scheduler = make_scheduler(runner)
    group = scheduler.submit(ask((7, 8, 9)))
    steps, happened = run(scheduler, runner)
    assert steps[0].inputs == [(0, (7, 8, 9), 0)]
    assert steps[0].rows == [Row(0, [START, FORCED], 0, Want.LAST)]
    assert not any(step.inputs for step in steps[1:])
    assert happened == [
        (group, Token(0, 7)),
        (group, Token(0, 8)),
        (group, Token(0, 9)),
        (group, Finished(0, "stop", 4, ending=Token(0, END))),
    ]
    assert scheduler.stats().prompt_tokens == 3
    assert scheduler.stats().generated_tokens == 4


def test_choices_share_one_encoding():
    runner = make_runner()
    scheduler = make_scheduler(runner)
    scheduler.submit(ask((7, 8), (9,), n=2))
    steps, happened = run(scheduler, runner)
    assert [inputs[1] for step in steps for inputs in step.inputs] == [(7, 8), (9,)]
    assert [said(happened, index) for index in range(4)] == [[7, 8], [7, 8], [9], [9]]


def test_beams_share_one_encoding():
    runner = make_runner()
    scheduler = make_scheduler(runner)
    scheduler.submit(ask((7, 8, 7), n=2, beams=Beams(num_beams=4)))
    steps, happened = run(scheduler, runner)
    assert [inputs for step in steps for inputs in step.inputs] == [(0, (7, 8, 7), 0)]
    assert said(happened, 0) == [7, 8, 7]


def test_a_long_source_is_encoded_whole_and_a_younger_one_waits_for_room():
    runner = make_runner()
    scheduler = make_scheduler(runner, chunk=10)
    scheduler.submit(ask((7,) * 20))
    scheduler.submit(ask((8,) * 20))
    steps, _ = run(scheduler, runner)
    assert [len(inputs[1]) for inputs in steps[0].inputs] == [20]
    assert [len(inputs[1]) for inputs in steps[1].inputs] == [20]


def test_penalties_count_the_answer_and_not_the_source():
    """As in transformers: what the encoder reads may be said again without a penalty."""
    runner = make_runner()
    scheduler = make_scheduler(runner)
    penalised = Sampling(temperature=0.0, repetition_penalty=1.5, no_repeat_ngram_size=2)
    scheduler.submit(ask((7, 8, 7, 8), sampling=penalised))
    _, happened = run(scheduler, runner)
    assert said(happened, 0)[:3] == [7, 8, 7]
    assert said(happened, 0)[3:4] != [8]  # now the pair has been said


def test_a_slot_is_reused_for_another_source():
    runner = make_runner()
    scheduler = make_scheduler(runner, token_budget=SOURCE_CONTEXT + CONTEXT)
    scheduler.submit(ask((7,) * 20))
    scheduler.submit(ask((8,) * 20))
    _, happened = run(scheduler, runner)
    assert scheduler.stats().reserved_tokens == 0
    assert [event.id for _, event in happened if isinstance(event, Token)] == [7] * 5 + [8] * 5


def test_source_and_answer_have_limits_of_their_own():
    scheduler = make_scheduler(make_runner())
    scheduler.submit(ask((7,) * SOURCE_CONTEXT, max_tokens=CONTEXT - 2))
    with pytest.raises(ContextOverflow, match="reads 30 tokens at most, but the prompt has 31") as error:
        scheduler.submit(ask((7,) * 31))
    assert error.value.param == "prompt"
    with pytest.raises(ContextOverflow, match="writes 10 tokens at most, but the request asks for 11") as error:
        scheduler.submit(ask((7,), max_tokens=11))
    assert error.value.param == "max_tokens"
    with pytest.raises(InvalidRequest, match="encoder-decoder") as error:
        scheduler.submit(ask((7,), prompt_logprobs=0))
    assert error.value.param == "prompt_logprobs"


def test_what_may_be_held_counts_the_source():
    scheduler = make_scheduler(make_runner(), token_budget=40)
    with pytest.raises(ContextOverflow):
        scheduler.submit(ask((7,) * 20, n=2))
    scheduler.submit(ask((7,) * 20))
    scheduler.schedule()
    assert scheduler.stats().reserved_tokens == 20 + 2 + 5


async def test_an_engine_tells_both_limits():
    engine = LocalEngine(make_runner, constraints=lambda _: None)
    await engine.start()
    try:
        assert (engine.context, engine.source_context) == (CONTEXT - 2, SOURCE_CONTEXT)
        happened = [event async for events in engine.generate(ask((7, 8))) for event in events]
        assert happened == [Token(0, 7), Token(0, 8), Finished(0, "stop", 3, ending=Token(0, END))]
    finally:
        await engine.close()


class Attentive(ScriptedRunner):
    """Logits that depend on the source and on every token, so that one wrong token anywhere shows in the answer."""

    def __init__(self, num_slots):
        super().__init__(
            vocab_size=16,
            num_slots=num_slots,
            context=CONTEXT,
            end_token_id=END,
            source_context=SOURCE_CONTEXT,
            decoder_start=(START, FORCED),
        )

    def step(self, rows):
        super().step(rows)
        logits = []
        for row in rows:
            held = self._slots[row.slot]
            logits.append(np.random.default_rng([*held.source, 99, *held.tokens]).normal(size=16) * 2)
        return np.array(logits, dtype=np.float32)


def random_request(source, max_tokens, n, seed, beams, penalty):
    return ask(
        *source,
        max_tokens=max_tokens,
        n=n,
        sampling=Sampling(temperature=0.0 if beams else 1.0, seed=seed, repetition_penalty=penalty),
        beams=Beams(num_beams=n + 1) if beams else None,
    )


prompts = st.lists(st.lists(st.integers(1, 15), min_size=1, max_size=12).map(tuple), min_size=1, max_size=2)
requests = st.builds(
    random_request,
    prompts,
    st.integers(1, 8),
    st.integers(1, 2),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from([1.0, 1.5]),
)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(requests, min_size=2, max_size=6),
    num_slots=st.integers(6, 12),
    budget=st.integers(200, 400),
    chunk=st.integers(1, 30),
    aborted=st.integers(0, 5),
)
def test_everybody_gets_what_they_would_get_alone(requests, num_slots, budget, chunk, aborted):
    runner = Attentive(num_slots)
    scheduler = make_scheduler(runner, token_budget=budget, chunk=chunk, chunk_beside_decode=chunk)
    groups, happened = [], []
    for place, request in enumerate(requests):
        groups.append(scheduler.submit(request))
        if place % 2:  # some come while others run
            step = scheduler.schedule()
            happened += scheduler.update(step, execute(runner, step)) if step else []
    gone = groups[aborted] if aborted < len(groups) else None
    if gone:
        scheduler.abort(gone)
    happened += run(scheduler, runner)[1]
    for group, request in zip(groups, requests, strict=True):
        if group is not gone:
            lonely = Attentive(num_slots)
            alone = make_scheduler(lonely, token_budget=400)
            alone.submit(request)
            expected = [event for _, event in run(alone, lonely)[1]]
            own = [event for owner, event in happened if owner is group]
            assert sorted(own, key=lambda event: event.index) == sorted(expected, key=lambda event: event.index)
    assert scheduler.stats().reserved_tokens == 0
    assert all(not slot.tokens and not slot.source for slot in runner._slots)
