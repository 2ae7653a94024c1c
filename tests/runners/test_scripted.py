import numpy as np
import pytest

from arriero.compute import Row, Want
from arriero.runners.scripted import ScriptedRunner

END = 0


def make(**options) -> ScriptedRunner:
    return ScriptedRunner(**{"vocab_size": 50, "num_slots": 3, "context": 16, "end_token_id": END, **options})


def said(runner: ScriptedRunner, prompt: list[int], slot: int = 0, limit: int = 12) -> list[int]:
    """What greedy decoding gives until the end token."""
    tokens, fed, position = [], prompt, 0
    while len(tokens) < limit:
        logits = runner.step([Row(slot, fed, position)])
        position += len(fed)
        fed = [int(logits[0].argmax())]
        if fed == [END]:
            break
        tokens += fed
    return tokens


def test_it_echoes_unless_told_otherwise():
    assert said(make(), [5, 6, 7]) == [5, 6, 7]


def test_it_replies_from_the_script():
    seen = []

    def reply(prompt):
        seen.append(prompt)
        return [1, 2, 3] if prompt == (9, 9) else [4]

    runner = make(reply=reply)
    assert said(runner, [9, 9]) == [1, 2, 3]
    assert said(runner, [8], slot=1) == [4]
    assert seen == [(9, 9), (8,)]


def test_the_prompt_ends_where_logits_are_first_wanted():
    runner = make()
    runner.step([Row(0, [5, 6], 0, Want.NOTHING)])
    assert runner.step([Row(0, [7], 2)])[0].argmax() == 5


def test_the_script_goes_on_whatever_was_said():
    runner = make()
    runner.step([Row(0, [5, 6, 7], 0)])
    assert runner.step([Row(0, [44], 3)])[0].argmax() == 6


def test_chance_has_no_say():
    logits = make().step([Row(0, [5], 0)])[0].astype(np.float64)
    assert np.exp(logits - logits.max()).sum() - 1 < 1e-40


def test_it_fails_when_told_to():
    runner = make(fail_after=2)
    assert said(runner, [5], limit=1) == [5]
    runner.step([Row(0, [5], 1)])
    with pytest.raises(RuntimeError, match="fail_after"):
        runner.step([Row(0, [5], 2)])


def test_every_step_takes_its_time(monkeypatch):
    slept = []
    monkeypatch.setattr("arriero.runners.scripted.time.sleep", slept.append)
    said(make(pace=0.25), [5, 6])
    assert slept == [0.25] * 3


BREACHES = {
    "position": lambda runner: runner.step([Row(0, [5], 1)]),
    "position after tokens": lambda runner: (runner.step([Row(0, [5], 0)]), runner.step([Row(0, [5], 0)])),
    "twice the same slot": lambda runner: runner.step([Row(0, [5], 0), Row(0, [6], 0)]),
    "no rows": lambda runner: runner.step([]),
    "no tokens": lambda runner: runner.step([Row(0, [], 0)]),
    "no such slot": lambda runner: runner.step([Row(3, [5], 0)]),
    "negative slot": lambda runner: runner.step([Row(-1, [5], 0)]),
    "past the context": lambda runner: runner.step([Row(0, [5] * 17, 0)]),
    "past the context in parts": lambda runner: (
        runner.step([Row(0, [5] * 16, 0)]),
        runner.step([Row(0, [5], 16)]),
    ),
    "unknown token": lambda runner: runner.step([Row(0, [50], 0)]),
    "negative token": lambda runner: runner.step([Row(0, [-1], 0)]),
    "two copies into one": lambda runner: runner.copy([(0, 2), (1, 2)]),
    "copy from nowhere": lambda runner: runner.copy([(3, 0)]),
    "copy to nowhere": lambda runner: runner.copy([(0, 3)]),
    "longer than it is": lambda runner: runner.truncate(0, 1),
    "less than nothing": lambda runner: runner.truncate(0, -1),
    "free nowhere": lambda runner: runner.free(3),
    "used when closed": lambda runner: (runner.close(), runner.step([Row(0, [5], 0)])),
    "closed twice": lambda runner: (runner.close(), runner.close()),
}


@pytest.mark.parametrize("breach", BREACHES.values(), ids=BREACHES)
def test_a_breach_of_the_protocol_is_raised(breach):
    with pytest.raises(ValueError):
        breach(make())


def test_a_breach_changes_nothing():
    runner = make()
    with pytest.raises(ValueError):
        runner.step([Row(0, [5], 0), Row(1, [5], 7)])
    assert said(runner, [5, 6]) == [5, 6]


def test_a_prompt_of_which_all_logits_are_wanted_ends_with_its_last_row():
    runner = make(reply=lambda prompt: [10 + len(prompt), 40])
    first = runner.step([Row(0, [5, 6, 7], 0, Want.ALL)])
    assert first.argmax(axis=1).tolist() == [11, 12, 13]
    second = runner.step([Row(0, [8, 9], 3, Want.ALL)])
    assert second.argmax(axis=1).tolist() == [14, 15]
    assert [int(runner.step([Row(0, [1], position)]).argmax()) for position in (5, 6)] == [40, END]
