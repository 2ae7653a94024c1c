"""Processes that are started before anybody knows what for."""

import sys

import pytest

from arriero.engine.process import spawned
from arriero.engine.process.spawned import discard_early, spawn, spawn_early

WAITING = (sys.executable, "-c", "import sys, time; time.sleep(60)")
ENDING = (sys.executable, "-c", "")


@pytest.fixture(autouse=True)
def nobody_waits():
    yield
    discard_early()


def end(started):
    started.connection.close()
    started.process.kill()
    started.process.wait()


def test_the_early_one_is_the_first_of_its_command():
    spawn_early(WAITING)
    early = spawned._early[WAITING].process
    other = spawn(ENDING)
    first, second = spawn(WAITING), spawn(WAITING)
    assert first.process is early
    assert second.process is not early
    for each in (other, first, second):
        end(each)


def test_one_that_is_dead_is_replaced():
    spawn_early(ENDING)
    early = spawned._early[ENDING].process
    early.wait()
    again = spawn(ENDING)
    assert again.process is not early
    end(again)


def test_one_that_nobody_asks_for_is_ended():
    spawn_early(WAITING)
    (early,) = spawned._early.values()
    discard_early()
    assert early.process.returncode is not None
    assert not spawned._early


def test_what_cannot_be_started_is_told_to_who_asks_for_it():
    spawn_early(("/no/such/program",))
    with pytest.raises(OSError):
        spawn(("/no/such/program",))
