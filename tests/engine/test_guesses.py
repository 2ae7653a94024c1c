"""With guesses an answer is what it is without, in fewer steps."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from arriero.compute import Want
from arriero.core import Finished, GenerationRequest, Sampling, Token
from arriero.engine.guesses import Guesses
from arriero.engine.local import execute
from arriero.engine.scheduler import Scheduler
from arriero.runners.scripted import ScriptedRunner

CONTEXT = 60
END = 0


class ForgetfulRunner(ScriptedRunner):
    """Logits that depend on the last two tokens and on whether the number of all is even: what was said comes again,
    and not for ever."""

    def __init__(self, num_guesses: int, num_slots: int = 3) -> None:
        super().__init__(vocab_size=8, num_slots=num_slots, context=CONTEXT, end_token_id=END, num_guesses=num_guesses)
        self.num_steps = 0

    def step(self, rows):
        self.num_steps += 1
        super().step(rows)
        wanted = []
        for row in rows:
            tokens = self._slots[row.slot].tokens
            first = {Want.ALL: row.position + 1, Want.LAST: len(tokens), Want.NOTHING: len(tokens) + 1}[row.want]
            wanted += [[*tokens[max(end - 2, 0) : end], end % 2] for end in range(first, len(tokens) + 1)]
        logits = [np.random.default_rng(each).normal(size=8).astype(np.float32) * 3 for each in wanted]
        return np.array(logits).reshape(-1, 8)


def make(num_guesses):
    runner = ForgetfulRunner(num_guesses)
    return runner, Scheduler(runner.info, token_budget=150, max_queue=10, chunk=16, prefix_tokens=60)


def answers(requests, num_guesses):
    """What each is told; requests come when those before have said a little."""
    runner, scheduler = make(num_guesses)
    told, waiting = {}, list(requests)
    while True:
        if waiting and runner.num_steps % 5 == 0:
            told[scheduler.submit(waiting.pop(0))] = []
        step = scheduler.schedule()
        if step is None and not waiting:
            return [
                [replace(event, cached_tokens=0) if isinstance(event, Finished) else event for event in events]
                for events in told.values()
            ], runner.num_steps
        if step is None:
            told[scheduler.submit(waiting.pop(0))] = []
            continue
        for group, event in scheduler.update(step, execute(runner, step)):
            told[group].append(event)
        assert scheduler.stats().reserved_tokens <= 150


requests = st.builds(
    GenerationRequest,
    id=st.just("r"),
    prompts=st.lists(st.integers(1, 7), min_size=1, max_size=20).map(lambda prompt: (tuple(prompt),)),
    max_tokens=st.integers(1, 40),
    likely_tokens=st.sampled_from([None, 5]),
    num_choices=st.sampled_from([1, 1, 1, 2]),
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 1.0]),
        top_p=st.sampled_from([1.0, 0.8]),
        frequency_penalty=st.sampled_from([0.0, 0.0, 1.0]),
        seed=st.integers(0, 3),
    ),
    logprobs=st.sampled_from([None, 0, 3]),
    end_token_ids=st.sampled_from([frozenset(), frozenset({END})]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(requests, min_size=1, max_size=4), st.integers(1, 7))
def test_answers_are_the_same(asked, num_guesses):
    assert answers(asked, num_guesses)[0] == answers(asked, 0)[0]


def test_right_guesses_save_steps():
    asked = GenerationRequest(id="r", prompts=((1, 2, 3),), max_tokens=50, sampling=Sampling(temperature=0))
    with_guesses, num_steps = answers([asked], 4)
    without, num_single_steps = answers([asked], 0)
    assert with_guesses == without
    assert num_single_steps >= 50
    assert num_steps < 30


def test_what_was_wrong_is_forgotten_before_the_next_step():
    runner, scheduler = make(3)
    group = scheduler.submit(GenerationRequest(id="r", prompts=((1, 2, 3, 4, 1, 2),), max_tokens=20))
    step = scheduler.schedule()
    scheduler.update(step, execute(runner, step))
    sequence = group.sequences[0]
    sequence.tokens[-1] = 3  # as the prompt goes on
    step = scheduler.schedule()
    assert step.rows[0].tokens == [3, 4, 1, 2]
    results = execute(runner, step)
    results.tokens[:] = [4, 7, 1, 1]
    events = scheduler.update(step, results)
    assert [event.id for _, event in events if isinstance(event, Token)] == [4, 7]
    assert scheduler.schedule().truncations == [(sequence.slot, 8)]


def test_somebody_else_who_speaks_ends_it():
    runner, scheduler = make(3)
    for _ in range(2):
        scheduler.submit(GenerationRequest(id="r", prompts=((1, 2) * 5,), max_tokens=30))
    while step := scheduler.schedule():
        assert not step.guesses or len(step.rows) == 1
        scheduler.update(step, execute(runner, step))
        if scheduler.stats().running == 2:
            assert not step.guesses


def test_a_guess_is_what_followed_the_longest_match_last():
    guesses = Guesses()
    tokens = [1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3]
    assert guesses.guess(tokens, 2) == [4, 9]
    assert guesses.guess([*tokens, 6, 2, 3], 3) == [6, 2, 3]
    assert guesses.guess([*tokens, 6, 2, 3, 8], 3) == []


def test_who_guesses_badly_pauses_and_tries_again():
    guesses, tokens = Guesses(), [1, 2, 3]
    guessed = []
    for _ in range(100):
        tokens.append(1 + len(tokens) % 3)
        guessed.append(bool(guesses.guess(tokens, 3)))
        if guessed[-1]:
            guesses.learn(0)
    assert 5 <= sum(guessed) < 30
    assert guessed[-40:].count(True) >= 1
