"""Callers take turns by cost and weight, and nobody waits for ever."""

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from arriero.engine.queue import FairQueue

CALLERS = ("alice", "bob", "carol")


def taken(queue: FairQueue[Any]) -> list[Any]:
    expected = list(queue)
    order = [queue.pop() for _ in range(len(queue))]
    assert order == expected
    return order


@given(st.lists(st.integers(1, 1000)))
def test_one_caller_has_a_plain_queue(costs: list[int]) -> None:
    queue: FairQueue[int] = FairQueue()
    for item, cost in enumerate(costs):
        queue.push(item, cost=cost)
    assert taken(queue) == list(range(len(costs)))


@given(st.integers(1, 60), st.integers(0, 20), st.integers(1, 1000))
def test_one_beside_many_is_next(many: int, done: int, cost: int) -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(many + done):
        queue.push(f"many {number}", cost=cost, caller="many")
    for _ in range(done):
        queue.pop()
    queue.push("one", cost=cost, caller="one")
    assert taken(queue).index("one") <= 1


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 9)), max_size=20))
def test_priority_orders_what_one_caller_waits_for(entries: list[tuple[int, int]]) -> None:
    queue: FairQueue[int] = FairQueue()
    for item, (priority, cost) in enumerate(entries):
        queue.push(item, cost=cost, priority=priority)
    assert taken(queue) == sorted(range(len(entries)), key=lambda item: entries[item][0])


def test_priority_gets_nobody_ahead_of_others() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3"):
        queue.push(item, cost=1, caller="alice", priority=-1000)
        queue.push(item.replace("a", "b"), cost=1, caller="bob")
    assert taken(queue) == ["a1", "b1", "a2", "b2", "a3", "b3"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(CALLERS), st.integers(1, 500)), min_size=30, max_size=120),
    st.tuples(*[st.sampled_from((0.25, 1.0, 4.0))] * 3),
)
def test_who_waits_gets_their_share(entries: list[tuple[str, int]], shares: tuple[float, ...]) -> None:
    """The bound of start-time fair queueing: two that both wait are never further apart than a request of each."""
    weights = dict(zip(CALLERS, shares, strict=True))
    queue: FairQueue[int] = FairQueue()
    for item, (caller, cost) in enumerate(entries):
        queue.push(item, cost=cost, caller=caller, weight=weights[caller])
    most = {each: max((cost for caller, cost in entries if caller == each), default=0) for each in CALLERS}
    served: Counter[str] = Counter()
    while queue.num_callers == 3:
        caller, cost = entries[queue.pop()]
        served[caller] += cost
        for one in CALLERS:
            for other in CALLERS:
                if queue.num_of(one) and queue.num_of(other) and one != other:
                    apart = abs(served[one] / weights[one] - served[other] / weights[other])
                    assert apart <= most[one] / weights[one] + most[other] / weights[other] + 1e-6


def test_a_pause_saves_nothing_up() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.push(f"alice {number}", cost=10, caller="alice")
    for _ in range(97):
        queue.pop()
    for number in range(3):
        queue.push(f"bob {number}", cost=10, caller="bob")
    assert taken(queue) == ["bob 0", "alice 97", "bob 1", "alice 98", "bob 2", "alice 99"]


class Queues(RuleBasedStateMachine):
    """Whatever comes and goes, the order that is told is the order that is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue()
        self.waiting: dict[int, str] = {}
        self.number = 0

    @rule(caller=st.sampled_from(CALLERS), cost=st.integers(0, 50), priority=st.integers(-1, 1))
    def push(self, caller: str, cost: int, priority: int) -> None:
        self.number += 1
        self.queue.push(self.number, cost=cost, caller=caller, priority=priority)
        self.waiting[self.number] = caller

    @precondition(lambda self: self.waiting)
    @rule()
    def pop(self) -> None:
        first = next(iter(self.queue))
        assert self.queue.pop() == first
        del self.waiting[first]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(self.waiting)))
        self.queue.remove(item)
        del self.waiting[item]
        assert item not in self.queue

    @invariant()
    def everybody_waits_once(self) -> None:
        assert sorted(self.queue) == sorted(self.waiting)
        assert len(self.queue) == len(self.waiting)
        for caller in CALLERS:
            assert self.queue.num_of(caller) == list(self.waiting.values()).count(caller)


TestQueues = Queues.TestCase
TestQueues.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_callers_who_left_are_forgotten() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(2000):
        queue.push(number, cost=1, caller=f"caller {number}")
        queue.pop()
    assert not queue._left
