"""How much of a prompt is read beside running answers."""

import random
import statistics

import pytest

from arriero.compute import Row, RunnerInfo
from arriero.core import GenerationRequest
from arriero.engine.pieces import FIRST, LEAST, SLOWER, Pieces
from arriero.engine.scheduler import Scheduler
from arriero.engine.step import Results

MOST = 512
LONG = 2000


class Machine:
    """A clock that goes on by what a step costs: so much, so much a token, and so much a token it attends to."""

    def __init__(self, fixed: float, per_token: float, per_attended: float, noise: float = 0.0) -> None:
        self.now = 0.0
        self._costs = fixed, per_token, per_attended
        self._noise, self._random = noise, random.Random(5)

    def compute(self, rows: list[Row]) -> float:
        """Seconds that a step took."""
        fixed, per_token, per_attended = self._costs
        seconds = fixed
        for row in rows:
            seconds += len(row.tokens) * (per_token + per_attended * (row.position + len(row.tokens) / 2))
        seconds *= 1 + self._noise * self._random.random()
        self.now += seconds
        return seconds


def run(machine: Machine, answers: int, prompts: int, length: int = 2000) -> tuple[float, list[float], int]:
    """The median step of answers alone; then the steps while prompts are read, and how many tokens the first had."""
    info = RunnerInfo(vocab_size=100, num_slots=64, context=4096, bytes_per_token=1, invariant=True)
    scheduler = Scheduler(info, token_budget=64 * 4096, max_queue=100, clock=lambda: machine.now)
    for _ in range(answers):
        scheduler.submit(GenerationRequest(id="", prompts=((1,) * 20,), max_tokens=2000))

    def step() -> tuple[float, int]:
        planned = scheduler.schedule()
        assert planned is not None
        seconds = machine.compute(planned.rows)
        scheduler.update(planned, Results(tokens=[7] * len(planned.draws)))
        return seconds, sum(len(row.tokens) for row in planned.rows) - answers

    alone = statistics.median([step()[0] for _ in range(20)][5:])
    for _ in range(prompts):
        scheduler.submit(GenerationRequest(id="", prompts=((2,) * length,), max_tokens=1))
    taken = []
    while scheduler.stats().running > answers or not taken:
        taken.append(step())
    return alone, [seconds for seconds, _ in taken], taken[0][1]


MACHINES = {
    "two cores, a small model": (4.5e-3, 0.42e-3, 0.43e-6),
    "two cores, a large model": (50e-3, 3e-3, 1.1e-6),
    "a GPU": (5e-3, 0.01e-3, 0.001e-6),
}


@pytest.mark.parametrize("costs", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("answers", [1, 8, 40])
def test_answers_go_on_while_a_prompt_is_read(costs, answers):
    alone, taken, first = run(Machine(*costs, noise=0.1), answers, 1)
    assert first == FIRST
    assert statistics.quantiles(taken, n=20)[-1] < 3 * alone
    # Neither is the prompt read slower than that asks for.
    assert statistics.median(taken) > 0.9 * SLOWER * alone or len(taken) < 15


def test_many_prompts_get_as_much_each_as_an_answer():
    alone, taken, _ = run(Machine(4.5e-3, 0.42e-3, 0.0), 2, 20, length=100)
    assert max(taken) > 5 * alone
    assert sum(taken) < 1.5 * (20 * 100 * 0.42e-3)


def test_a_short_prompt_is_soon_over():
    _, taken, first = run(Machine(4.5e-3, 0.42e-3, 0.0), 8, 1, length=150)
    assert (first, len(taken)) == (64, 3)


def test_nothing_is_known_at_first():
    pieces = Pieces(MOST)
    assert pieces.size(1, 1, LONG) == MOST
    pieces.learn(1, 0, 0.005)
    assert pieces.size(1, 1, LONG) == FIRST


def test_a_stalled_machine_counts_for_little():
    pieces = Pieces(MOST)
    for turn in range(200):
        stalled = turn % 5 == 0
        pieces.learn(8, 0, 0.5 if stalled else 0.008)
        pieces.learn(8, 20, 1.0 if stalled else 0.018)
    unstalled = (SLOWER - 1) * 0.008 / 0.0005
    assert 0.8 * unstalled <= pieces.size(8, 1, LONG) <= 1.4 * unstalled


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e9])
def test_sizes_stay_within_bounds(seconds):
    pieces = Pieces(64)
    for _ in range(3):
        pieces.learn(3, 0, 1e-3)
        pieces.learn(3, 10, seconds)
        assert LEAST <= pieces.size(3, 1, LONG) <= 64
    assert Pieces(4).size(3, 1, LONG) == 4
