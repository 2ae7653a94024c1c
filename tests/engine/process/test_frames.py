"""Messages through a socket, whole and in any pieces."""

import asyncio
import pickle
import socket

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arriero.core import EngineStats, Finished, Logprob, Token
from arriero.engine.process.frames import Channel, pack

MESSAGES = [
    [(7, [Token(0, 5), Token(1, 6, Logprob(-0.5, ((6, -0.5),))), Finished(0, "stop", 2, 1, Token(0, 3))])],
    EngineStats(waiting=1, steps=2),
    np.arange(12, dtype=np.float32).reshape(3, 4),
    {"several": [np.zeros((0, 4), np.float32), np.ones(3, np.int8)], "text": "x" * 100_000},
]


def same(first, second):
    return pickle.dumps(first) == pickle.dumps(second)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(range(len(MESSAGES))), max_size=6), st.data())
def test_frames_may_come_in_any_pieces(chosen, data):
    heard = []
    channel = Channel(heard.append, lambda: None)
    stream = b"".join(bytes(piece) for number in chosen for piece in pack(MESSAGES[number]))
    while stream:
        room = channel.get_buffer(-1)
        size = min(len(stream), data.draw(st.integers(1, len(room))))
        room[:size], stream = stream[:size], stream[size:]
        channel.buffer_updated(size)
    assert len(heard) == len(chosen)
    assert all(same(MESSAGES[number], message) for number, message in zip(chosen, heard, strict=True))


def test_arrays_are_not_copied_out_of_their_frame():
    heard = []
    channel = Channel(heard.append, lambda: None)
    for piece in pack(MESSAGES[2]):
        data = bytes(piece)
        while data:
            room = channel.get_buffer(-1)
            size = min(len(room), len(data))
            room[:size], data = data[:size], data[size:]
            channel.buffer_updated(size)
    assert not heard[0].flags.owndata
    assert heard[0].flags.writeable


async def test_both_ends():
    first, second = socket.socketpair()
    heard, gone = asyncio.Queue(), asyncio.Event()
    one = Channel(lambda message: None, lambda: None)
    other = Channel(heard.put_nowait, gone.set)
    one.send("before there is a socket")
    loop = asyncio.get_running_loop()
    await loop.create_unix_connection(lambda: one, sock=first)
    await loop.create_unix_connection(lambda: other, sock=second)
    big = np.arange(1_000_000, dtype=np.float32)
    for message in ("a", big, "b"):
        one.send(message)
    one.finish()
    assert await heard.get() == "a"
    np.testing.assert_array_equal(await heard.get(), big)
    assert await heard.get() == "b"
    await gone.wait()
    other.send("nobody is there")
    other.close()


@pytest.mark.parametrize("message", MESSAGES[:2])
def test_what_crosses_every_step_is_as_it_was(message):
    assert pickle.loads(pickle.dumps(message, protocol=5)) == message
