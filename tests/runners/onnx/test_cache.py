"""The slots' keys and values: whatever is moved, copied or freed, every slot keeps its own."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from arriero.models.architecture import DecoderConfig
from arriero.runners.onnx.cache import KEPT_TOKENS, KeyValueCache

NUM_SLOTS = 5


def config(**changes):
    sizes = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8, "context": 4096}
    return DecoderConfig(
        family="llama", intermediate_size=8, vocab_size=8, norm_epsilon=1e-5, rope_theta=1e4, **{**sizes, **changes}
    )


def append(cache, slot, values):
    """Write what the graph would write: one token a value."""
    row, start = cache.row(slot), cache.length(slot)
    for buffer in cache.buffers:
        for offset, value in enumerate(values):
            buffer[row, :, start + offset] = value
    cache.grow(slot, start + len(values))


def contents(cache, slot):
    """What a slot holds, after checking that keys and values of all heads agree."""
    row, length = cache.row(slot), cache.length(slot)
    held = [buffer[row, :, :length] for buffer in cache.buffers]
    for part in held:
        np.testing.assert_array_equal(part, np.broadcast_to(held[0][:1, :, :1], part.shape))
    return held[0][0, :, 0].tolist()


class CacheMachine(RuleBasedStateMachine):
    """The cache against a dictionary of lists."""

    slots = st.integers(0, NUM_SLOTS - 1)

    @initialize()
    def start(self):
        self.cache = KeyValueCache(config(), NUM_SLOTS, 64)
        self.model = {}
        self.counter = 0

    @rule(slot=slots, count=st.integers(1, 6))
    def append(self, slot, count):
        values = list(range(self.counter, self.counter + count))
        self.counter += count
        append(self.cache, slot, values)
        self.model[slot] = self.model.get(slot, []) + values

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def arrange(self, data):
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.model)), min_size=1, unique=True))
        order = self.cache.arrange(chosen)
        assert sorted(order) == sorted(chosen)
        assert [self.cache.row(slot) for slot in order] == list(range(len(order)))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def copy(self, data):
        destinations = data.draw(st.lists(self.slots, min_size=1, unique=True))
        sources = [data.draw(st.sampled_from(sorted(self.model))) for _ in destinations]
        self.cache.copy(list(zip(sources, destinations, strict=True)))
        self.model |= {d: list(self.model[s]) for s, d in zip(sources, destinations, strict=True)}

    @rule(slot=slots, length=st.integers(0, 10))
    def truncate(self, slot, length):
        self.cache.truncate(slot, length)
        if slot in self.model:
            self.model[slot] = self.model[slot][:length]

    @rule(slot=slots)
    def free(self, slot):
        self.cache.free(slot)
        self.model.pop(slot, None)

    @invariant()
    def every_slot_holds_its_own(self):
        for slot, values in self.model.items():
            assert contents(self.cache, slot) == values


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_pages_of_a_long_context_go_back_to_the_system(resident_bytes):
    length = 20_000
    cache = KeyValueCache(config(num_layers=2, num_kv_heads=4, head_dim=64, context=32_768), 2, 32_768)
    before = resident_bytes()
    row = cache.row(0)
    for buffer in cache.buffers:
        buffer[row, :, :length] = 1
    cache.grow(0, length)
    long = resident_bytes() - before
    assert long >= length * cache.bytes_per_token * 0.9
    cache.free(0)
    kept = resident_bytes() - before
    assert kept <= 2 * KEPT_TOKENS * cache.bytes_per_token
    append(cache, 0, [3, 4])
    assert contents(cache, 0) == [3, 4]


def test_a_slot_that_holds_nothing_has_no_length():
    cache = KeyValueCache(config(), NUM_SLOTS, 16)
    assert cache.length(3) == 0
    cache.truncate(3, 1)
    cache.free(3)
    assert cache.length(3) == 0


@pytest.mark.parametrize("slots", [[0], [2, 0, 1], [4]])
def test_fresh_slots_are_arranged_in_front(slots):
    cache = KeyValueCache(config(), NUM_SLOTS, 16)
    order = cache.arrange(slots)
    assert sorted(cache.row(slot) for slot in order) == list(range(len(slots)))
