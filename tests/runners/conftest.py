"""The runners that the contract in test_contract.py is held against: add a line to SUBJECTS and yours is too."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from arriero.core import Runner
from arriero.runners.scripted import ScriptedRunner


class Subject(NamedTuple):
    """A runner of at least 6 slots, 64 tokens of context and 50 tokens of vocabulary."""

    make: Callable[[], Runner]
    tolerance: float
    """How far logits may differ when only the company or the cutting of the prompt does; 0 is bit for bit."""


def scripted() -> Runner:
    return ScriptedRunner(vocab_size=60, num_slots=6, context=64, end_token_id=0)


SUBJECTS = {
    "scripted": Subject(scripted, 0.0),
}


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request) -> Iterator[tuple[Runner, float]]:
    """Each runner in turn, with its tolerance."""
    made = SUBJECTS[request.param]
    runner = made.make()
    yield runner, made.tolerance
    runner.close()
