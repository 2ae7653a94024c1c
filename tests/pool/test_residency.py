"""The rule of who leaves memory, against its own words."""

from hypothesis import given
from hypothesis import strategies as st

from arriero.pool.residency import Resident, to_evict

residents = st.lists(
    st.builds(
        Resident,
        name=st.uuids().map(str),
        num_bytes=st.integers(0, 100),
        last_used=st.floats(0, 1000),
        may_go=st.booleans(),
    ),
    max_size=8,
    unique_by=lambda each: each.name,
)


def total(models):
    return sum(each.num_bytes for each in models)


@given(residents, st.integers(0, 150), st.integers(1, 400))
def test_the_oldest_go_as_few_as_it_takes_and_none_in_use(models, needed, budget):
    names = to_evict(models, needed, budget)
    going = [each for each in models if names is not None and each.name in names]
    staying = [each for each in models if each not in going]
    if names is None:
        assert total(each for each in models if not each.may_go) + needed > budget
        return
    assert all(each.may_go for each in going)
    assert total(staying) + needed <= budget
    if going:
        last = next(each for each in going if each.name == names[-1])
        assert total(staying) + last.num_bytes + needed > budget  # without the last it would not have done
        spared = [each.last_used for each in staying if each.may_go and each.num_bytes]
        assert not spared or max(each.last_used for each in going) <= min(spared)


@given(residents, st.integers(0, 150))
def test_without_a_budget_nobody_goes(models, needed):
    assert to_evict(models, needed, 0) == []


def test_what_takes_nothing_is_left_alone():
    models = [Resident("small", 0, 1.0, True), Resident("large", 5, 2.0, True)]
    assert to_evict(models, 5, 5) == ["large"]
