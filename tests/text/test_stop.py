from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arriero.core import GenerationRequest
from arriero.errors import InvalidRequest
from arriero.models.tokenizers.tokenizer import load_tokenizer
from arriero.text.stop import StopMachine, stop_constraints

letters = st.text("ab", max_size=30)
anything = st.text(max_size=30)


def cut(text: str, stop_strings: list[str]) -> str:
    """The definition: all of the text before the earliest place where a stop string begins."""
    starts = [text.find(stop) for stop in stop_strings if stop in text]
    return text[: min(starts, default=len(text))]


def pieces(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def run(machine: StopMachine, parts: list[str]) -> str:
    return "".join([*map(machine.add, parts), machine.flush()])


@given(letters, st.lists(st.text("ab", min_size=1, max_size=5), max_size=4), st.lists(st.integers(0, 30), max_size=8))
@example("abab", ["ba", "bab", "abab"], [1, 2, 3])
@example("aab", ["aab", "a"], [])
@example("abcd", ["bc", "abcd"], [3])
@example("abcx", ["bc", "abcd"], [3])
@example("abc", ["bc", "abcd"], [1])
def test_text_ends_before_the_earliest_stop_string(text, stop_strings, cuts):
    machine = StopMachine(stop_strings)
    assert run(machine, pieces(text, cuts)) == cut(text, stop_strings)
    assert machine.stopped == any(stop in text for stop in stop_strings)


@given(anything, st.data())
def test_any_characters_in_any_pieces(text, data):
    inside = st.builds(lambda start, size: text[start : start + size], st.integers(0, len(text)), st.integers(1, 5))
    stop_strings = data.draw(st.lists(st.one_of(inside, st.text(max_size=4)).filter(bool), max_size=4))
    parts = pieces(text, data.draw(st.lists(st.integers(0, 30), max_size=8)))
    assert run(StopMachine(stop_strings), parts) == cut(text, stop_strings)


@given(letters, st.lists(st.text("ab", min_size=1, max_size=5), max_size=4))
def test_only_what_may_begin_a_stop_string_is_held_back(text, stop_strings):
    machine = StopMachine(stop_strings)
    given_back = ""
    for end, character in enumerate(text, start=1):
        given_back += machine.add(character)
        if machine.stopped:
            break
        so_far = text[:end]
        held = so_far.removeprefix(given_back)
        assert given_back + held == so_far
        waits = [start for start in range(end) if any(stop.startswith(so_far[start:]) for stop in stop_strings)]
        assert len(given_back) == min(waits, default=end)


@given(letters, st.lists(st.text("ab", min_size=1, max_size=5), max_size=3), st.integers(0, 30), letters)
def test_a_copy_goes_its_own_way(text, stop_strings, at, other):
    machine = StopMachine(stop_strings)
    before = machine.add(text[:at])
    copy = machine.copy()
    assert before + run(machine, [text[at:]]) == cut(text, stop_strings)
    assert before + run(copy, [other]) == cut(text[:at] + other, stop_strings)


def test_a_stop_string_that_is_complete_waits_for_one_begun_before_it():
    machine = StopMachine(["bc", "abcd"])
    assert machine.add("xab") == "x"
    assert machine.add("c") == ""
    assert not machine.stopped
    assert machine.add("e") == "a"
    assert machine.stopped
    assert machine.add("more") + machine.flush() == ""


def test_an_empty_stop_string_is_refused():
    with pytest.raises(InvalidRequest) as caught:
        StopMachine(["a", ""])
    assert caught.value.param == "stop"


def test_a_long_stop_string_costs_each_character_once():
    machine = StopMachine(["a" * 20_000 + "b"])
    assert "".join(machine.add("a") for _ in range(40_000)) == "a" * 20_000
    assert machine.add("b") == ""
    assert machine.stopped


def request(*stop_strings: str) -> GenerationRequest:
    return GenerationRequest(id="1", prompts=((1,),), max_tokens=8, stop_strings=stop_strings)


@pytest.mark.parametrize("name", ["smollm-like", "sentencepiece-gguf"])
def test_the_engine_is_told_at_the_token_that_completes_a_stop_string(name, vocabularies):
    tokenizer = load_tokenizer(vocabularies[name])
    ids = tokenizer.encode("we go on 你好 STOP here", add_special_tokens=False)
    constraint = stop_constraints(tokenizer)(request("好 ST"))
    assert constraint is not None
    told = [constraint.accept(id) for id in ids]
    first = told.index(True)
    assert "好 ST" in tokenizer.decode(ids[: first + 1])
    assert "好 ST" not in tokenizer.decode(ids[:first])


def test_a_request_without_stop_strings_needs_no_constraint(vocabularies):
    assert stop_constraints(load_tokenizer(vocabularies["smollm-like"]))(request()) is None


def test_a_forked_constraint_is_independent(vocabularies):
    tokenizer = load_tokenizer(vocabularies["smollm-like"])
    one, other = (tokenizer.encode(text, add_special_tokens=False) for text in ("\U00040000", "\U00040001"))
    assert one[:-1] == other[:-1]
    constraint = stop_constraints(tokenizer)(request("\U00040000"))
    assert constraint is not None
    assert not any(constraint.accept(id) for id in one[:-1])
    fork = constraint.copy()
    assert constraint.accept(one[-1])
    assert not fork.accept(other[-1])


@given(letters, st.lists(st.text("ab", min_size=1, max_size=5), max_size=4), st.lists(st.integers(0, 30), max_size=8))
@example("abab", ["ba", "bab", "ab"], [1, 2, 3])
def test_the_stop_string_itself_may_be_kept(text, stop_strings, cuts):
    machine = StopMachine(stop_strings, include_stop_string=True)
    places = [(text.find(stop), len(stop)) for stop in stop_strings if stop in text]
    expected = text[: sum(min(places))] if places else text
    assert run(machine, pieces(text, cuts)) == expected


@given(letters, st.lists(st.text("ab", min_size=1, max_size=5), max_size=4), st.integers(0, 30))
@example("aaaa", ["aaa"], 3)
def test_stop_strings_that_are_complete_too_early_are_text(text, stop_strings, least):
    """Only those that end after so many characters stop; they may begin before."""
    machine = StopMachine(stop_strings)
    parts = [machine.add(character, may_stop=place >= least) for place, character in enumerate(text, start=1)]
    ends = [
        (start, start + len(stop))
        for stop in stop_strings
        for start in range(len(text))
        if text.startswith(stop, start) and start + len(stop) >= max(least, 1)
    ]
    assert "".join([*parts, machine.flush()]) == text[: min(ends)[0] if ends else len(text)]


def test_a_choice_has_its_least_tokens_before_a_stop_string_ends_it(vocabularies):
    tokenizer = load_tokenizer(vocabularies["smollm-like"])
    ids = tokenizer.encode("abababab", add_special_tokens=False)
    constraint = stop_constraints(tokenizer)(replace(request("b"), min_tokens=len(ids)))
    assert constraint is not None
    fork = constraint.copy()
    assert [constraint.accept(id) for id in ids] == [False] * (len(ids) - 1) + [True]
    assert [fork.accept(id) for id in ids] == [False] * (len(ids) - 1) + [True]


def test_special_tokens_count_as_text_where_they_are_shown(vocabularies):
    tokenizer = load_tokenizer(vocabularies["smollm-like"])
    for skipped in (True, False):
        constraint = stop_constraints(tokenizer)(replace(request("<|im_start|>"), skip_special_tokens=skipped))
        assert constraint is not None
        assert constraint.accept(3) is not skipped
