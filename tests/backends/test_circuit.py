"""When a server is left alone, and when it is asked again."""

from arriero.backends.circuit import Circuit
from clock import Clock


def test_a_few_failures_in_a_row_open_it_and_an_answer_between_does_not() -> None:
    circuit = Circuit()
    for _ in range(4):
        assert not circuit.fail()
    circuit.succeed()
    assert not any(circuit.fail() for _ in range(4))
    assert circuit.admits
    assert circuit.fail()
    assert circuit.state == "open"
    assert not circuit.admits


def test_many_failures_among_answers_open_it() -> None:
    circuit = Circuit()
    opened = False
    for _ in range(10):
        circuit.succeed()
        opened = circuit.fail()
    assert opened
    assert circuit.state == "open"


def opened(draw: float = 0.0) -> Circuit:
    circuit = Circuit(draw=lambda: draw)
    while circuit.state == "closed":
        circuit.fail()
    return circuit


def test_one_request_tries_after_a_check_and_closes_it() -> None:
    circuit = opened()
    circuit.revive()
    assert circuit.state == "half-open"
    assert circuit.admits
    circuit.begin()
    assert not circuit.admits
    circuit.succeed()
    assert circuit.state == "closed"
    assert circuit.admits


def test_a_trial_that_is_given_up_lets_another_try() -> None:
    circuit = opened()
    circuit.revive()
    circuit.begin()
    circuit.give_up()
    assert circuit.admits


def test_a_trial_that_fails_opens_it_for_longer() -> None:
    circuit = opened()
    first = circuit.pause
    circuit.revive()
    circuit.begin()
    assert circuit.fail()
    assert circuit.state == "open"
    assert circuit.pause == 2 * first


def test_pauses_are_drawn_from_a_range_and_have_an_end() -> None:
    assert opened(0.0).pause == 0.5
    assert opened(1.0).pause == 1.0
    circuit = opened(1.0)
    for _ in range(20):
        circuit.lengthen()
    assert circuit.pause == 60.0


def test_a_server_that_asks_for_a_rest_is_well() -> None:
    clock = Clock(0.0)
    circuit = Circuit(clock)
    circuit.rest(10.0)
    assert circuit.rests
    assert circuit.admits
    clock.now = 10.0
    assert not circuit.rests
    circuit.rest(1e9)
    clock.now = 1000.0
    assert not circuit.rests


def test_late_failures_do_not_open_it_again() -> None:
    circuit = opened()
    pause = circuit.pause
    assert not circuit.fail()
    assert circuit.pause == pause
