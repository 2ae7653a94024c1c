"""What every runner promises, checked through `arriero.compute.Runner` alone; conftest.py lists the runners.

Where a test compares with "the same alone", it is the same tokens with logits wanted at the same positions, in
a slot and in steps of their own.
"""

from itertools import pairwise

import numpy as np
import pytest

from arriero.compute import Row, Want

A = [7, 3, 9, 12, 5, 31, 8]
B = [11, 42, 2, 6]
C = [20, 21, 22, 23, 24, 25, 26, 27, 28, 29]


@pytest.fixture
def runner(subject):
    """Handed out, and taken back, with every slot empty."""
    runner, _ = subject
    yield runner
    for slot in range(runner.info.num_slots):
        runner.free(slot)


@pytest.fixture
def same(subject):
    """Asserts that logits are the same, as far as this runner promises."""
    _, tolerance = subject

    def check(actual, expected):
        if tolerance == 0:
            np.testing.assert_array_equal(actual, expected)
        else:
            np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)

    return check


def run(runner, *rows):
    """One step; the array is the runner's, so keep a copy."""
    return runner.step([Row(*row) for row in rows]).copy()


def alone(runner, *pieces):
    """The last logits after appending the pieces, each with its last logits wanted, in a slot that is free again."""
    slot, position = runner.info.num_slots - 1, 0
    runner.free(slot)
    for piece in pieces:
        logits = run(runner, (slot, piece, position))
        position += len(piece)
    runner.free(slot)
    return logits


def test_info_makes_sense(runner):
    info = runner.info
    assert info.num_slots >= 6
    assert info.context >= 64
    assert info.vocab_size >= 50
    assert info.bytes_per_token > 0
    assert runner.info == info


def test_logits_are_float32_rows_over_the_vocabulary(runner):
    logits = run(runner, (0, A, 0))
    assert logits.shape == (1, runner.info.vocab_size)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


def test_different_prompts_give_different_logits(runner):
    assert not np.array_equal(alone(runner, A), alone(runner, B))
    assert not np.array_equal(alone(runner, A), alone(runner, A[::-1]))


def test_nothing_wanted_nothing_given(runner):
    assert run(runner, (0, A, 0, Want.NOTHING)).shape == (0, runner.info.vocab_size)


def test_all_positions_are_what_each_would_be_as_the_last(runner, same):
    logits = run(runner, (0, A, 0, Want.ALL))
    assert logits.shape == (len(A), runner.info.vocab_size)
    for end in range(runner.info.min_prompt_chunk, len(A) + 1):
        same(alone(runner, A[:end]), logits[end - 1 : end])


@pytest.mark.parametrize("cuts", [[1], [6], [3], [1, 2, 3], [2, 5], [1, 2, 3, 4, 5, 6]], ids=str)
def test_a_prompt_in_chunks_is_the_prompt_at_once(runner, same, cuts):
    unit = runner.info.min_prompt_chunk
    prompt = A * unit
    for start, end in pairwise(unit * cut for cut in [0, *cuts, len(A)]):
        logits = run(runner, (0, prompt[start:end], start, Want.LAST if end == len(prompt) else Want.NOTHING))
    same(logits, alone(runner, prompt))
    same(run(runner, (0, [4], len(prompt))), alone(runner, prompt, [4]))


def test_all_positions_in_chunks_are_all_positions_at_once(runner, same):
    whole = run(runner, (0, C, 0, Want.ALL))
    parts = [run(runner, (1, C[start:end], start, Want.ALL)) for start, end in ((0, 4), (4, 6), (6, 10))]
    same(np.concatenate(parts), whole)


def test_rows_of_every_kind_share_a_step_and_keep_their_order(runner, same):
    """Decoding, a whole prompt, a middle chunk that wants nothing, a last chunk that wants all."""
    run(runner, (4, A, 0), (2, C[:3], 0, Want.NOTHING))
    run(runner, (0, C[:2], 0, Want.NOTHING))
    logits = run(runner, (2, C[3:6], 3, Want.NOTHING), (4, [13], len(A)), (0, C[2:5], 2, Want.ALL), (1, B, 0))
    assert len(logits) == 1 + 3 + 1
    same(logits[:1], alone(runner, A, [13]))
    run(runner, (3, C[:2], 0, Want.NOTHING))
    same(logits[1:4], run(runner, (3, C[2:5], 2, Want.ALL)))
    same(logits[4:], alone(runner, B))
    same(run(runner, (2, C[6:], 6)), alone(runner, C))


def test_a_batch_gives_what_each_gets_alone(runner, same):
    prompts = [A, B, C, A[::-1], B[::-1]]
    together = run(runner, *((slot, prompt, 0) for slot, prompt in enumerate(prompts)))
    for row, prompt in enumerate(prompts):
        same(together[row : row + 1], alone(runner, prompt))
    following = [[1], [2], [3], [4], [5]]
    together = run(runner, *((slot, following[slot], len(prompts[slot])) for slot in (3, 1, 4, 0, 2)))
    for row, slot in enumerate((3, 1, 4, 0, 2)):
        same(together[row : row + 1], alone(runner, prompts[slot], following[slot]))


def test_a_slot_that_rests_is_not_disturbed(runner, same):
    run(runner, (0, A, 0), (1, B, 0), (2, C, 0))
    for position in range(3):
        run(runner, (0, [position], len(A) + position), (2, [position], len(C) + position))
    same(run(runner, (1, [9], len(B))), alone(runner, B, [9]))


PERMUTATIONS = {
    "one": [(0, 3)],
    "onto one in use": [(0, 1)],
    "swap": [(0, 1), (1, 0)],
    "cycle": [(0, 1), (1, 2), (2, 0)],
    "fan out": [(0, 3), (0, 4), (0, 1)],
    "shift": [(0, 1), (1, 2), (2, 3)],
    "to itself": [(1, 1), (0, 2)],
    "none": [],
}


@pytest.mark.parametrize("pairs", PERMUTATIONS.values(), ids=PERMUTATIONS)
def test_copies_happen_all_at_once(runner, same, pairs):
    held = {0: A, 1: B, 2: C}
    run(runner, *((slot, prompt, 0) for slot, prompt in held.items()))
    runner.copy(pairs)
    held |= {destination: held[source] for source, destination in pairs}
    logits = run(runner, *((slot, [33], len(prompt)) for slot, prompt in held.items()))
    for row, prompt in enumerate(held.values()):
        same(logits[row : row + 1], alone(runner, prompt, [33]))


def test_a_copy_and_its_source_go_their_own_ways(runner, same):
    run(runner, (0, A, 0))
    runner.copy([(0, 1)])
    run(runner, (0, [1], len(A)), (1, [2], len(A)))
    run(runner, (1, [3], len(A) + 1))
    runner.free(0)
    same(run(runner, (1, [4], len(A) + 2)), alone(runner, A, [2], [3], [4]))


def test_copying_a_shorter_slot_over_a_longer_one_leaves_nothing_behind(runner, same):
    run(runner, (0, B, 0), (1, C, 0))
    runner.copy([(0, 1)])
    same(run(runner, (1, A, len(B))), alone(runner, B, A))


def test_copying_an_empty_slot_empties(runner, same):
    run(runner, (1, C, 0))
    runner.copy([(0, 1)])
    same(run(runner, (1, B, 0)), alone(runner, B))


@pytest.mark.parametrize("length", [0, 1, 6])
def test_a_prompt_that_was_cut_can_be_gone_on_with(runner, same, length):
    run(runner, (0, A[:length] + C, 0, Want.NOTHING))
    runner.truncate(0, length)
    same(run(runner, (0, A[length:], length)), alone(runner, A))


def test_an_answer_that_was_cut_can_be_gone_on_with(runner, same):
    run(runner, (0, A, 0))
    for position, token in enumerate([14, 15, 16, 17]):
        run(runner, (0, [token], len(A) + position))
    runner.truncate(0, len(A) + 2)
    same(run(runner, (0, [18], len(A) + 2)), alone(runner, A, [14], [15], [18]))


def test_cutting_to_what_is_held_changes_nothing(runner, same):
    run(runner, (0, A, 0))
    runner.truncate(0, len(A))
    same(run(runner, (0, [1], len(A))), alone(runner, A, [1]))


def test_a_slot_that_was_freed_is_as_new(runner, same):
    run(runner, (0, C, 0), (1, A, 0))
    runner.free(0)
    same(run(runner, (0, B, 0), (1, [5], len(A)))[:1], alone(runner, B))
    runner.free(0)
    runner.free(0)
    same(run(runner, (0, A, 0)), alone(runner, A))


def test_a_slot_can_be_filled_to_the_context(runner):
    context = runner.info.context
    tokens = [position % 40 + 1 for position in range(context)]
    run(runner, (0, tokens[:-1], 0))
    assert np.isfinite(run(runner, (0, tokens[-1:], context - 1))).all()


# Hidden states


def states_of(runner, tokens):
    """The states of a prompt at once, in a slot that is free again."""
    slot = runner.info.num_slots - 1
    runner.free(slot)
    states = runner.states(Row(slot, tokens, 0)).copy()
    runner.free(slot)
    return states


@pytest.fixture
def near(subject):
    """Asserts that states are the same; sums of floats, the more exact formats none excepted."""
    tolerance = max(subject[1], 1e-5)
    return lambda actual, expected: np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def test_states_are_float32_rows_of_the_hidden_size(runner):
    states = states_of(runner, A)
    assert states.shape == (len(A), runner.info.hidden_size)
    assert states.dtype == np.float32
    assert np.isfinite(states).all()


def test_different_inputs_have_different_states(runner):
    assert not np.array_equal(states_of(runner, A), states_of(runner, A[::-1]))


def test_a_state_depends_on_nothing_that_follows(runner, near):
    near(states_of(runner, A)[: len(A) - 2], states_of(runner, A[:-2]))


def test_states_of_one_token(runner, near):
    near(states_of(runner, A[:1]), states_of(runner, A)[:1])


@pytest.mark.parametrize("cuts", [[6], [2, 5], [2, 4]], ids=str)
def test_states_in_chunks_are_the_states_at_once(runner, near, cuts):
    prompt = A * 3
    chunks = [
        runner.states(Row(0, prompt[start:end], start)).copy() for start, end in pairwise([0, *cuts, len(prompt)])
    ]
    near(np.concatenate(chunks), states_of(runner, prompt))


def test_states_do_not_depend_on_the_slots_beside(runner, near, same):
    run(runner, (0, A, 0), (1, B, 0))
    near(runner.states(Row(2, C, 0)).copy(), states_of(runner, C))
    logits = run(runner, (0, [1], len(A)), (1, [2], len(B)))
    same(logits[:1], alone(runner, A, [1]))
    same(logits[1:], alone(runner, B, [2]))


def test_a_slot_that_was_cut_to_nothing_reads_the_next_input_as_the_first(runner, near):
    runner.states(Row(0, C, 0))
    runner.truncate(0, 0)
    near(runner.states(Row(0, A, 0)).copy(), states_of(runner, A))
