"""Python objects over a stream socket, each in a frame of its own; arrays lie beside the pickle and are not copied.

A frame is a header (bytes that follow, bytes of the pickle, number of buffers), the buffers of the pickle's arrays
(pickle protocol 5, PEP 574), their lengths as 64-bit numbers, and the pickle. Only processes that trust each other may
talk like this: a pickle can run any code.
"""

from __future__ import annotations

import asyncio
import copyreg
import pickle
import struct
from collections.abc import Callable
from dataclasses import fields
from operator import attrgetter
from typing import Any, cast

from arriero.core import EngineStats, Finished, Token

_HEADER = struct.Struct("<QII")
_LENGTH = struct.Struct("<Q")


def pack(message: object) -> list[bytes | memoryview]:
    """The pieces of a message's frame, in order."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    lengths = b"".join(_LENGTH.pack(view.nbytes) for view in views)
    size = sum(view.nbytes for view in views) + len(lengths) + len(data)
    return [_HEADER.pack(size, len(data), len(views)), *views, lengths, data]


def unpack(frame: memoryview, num_pickled: int, num_buffers: int) -> Any:
    """The message whose frame this is, without its header; its arrays lie in the frame."""
    end = len(frame) - num_pickled
    lengths = frame[end - num_buffers * _LENGTH.size : end]
    buffers, start = [], 0
    for (length,) in _LENGTH.iter_unpack(lengths):
        buffers.append(frame[start : start + length])
        start += length
    return pickle.loads(frame[end:], buffers=buffers)


class Channel(asyncio.BufferedProtocol):
    """One end of a socket that carries messages both ways; belongs to one event loop."""

    def __init__(self, receive: Callable[[Any], None], ended: Callable[[], None]) -> None:
        """`receive` is called with every message, `ended` once when the other side is gone."""
        self._receive = receive
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._counts: tuple[int, int] | None = None  # of pickled bytes and of buffers, once the header is here
        self._whole = self._missing = memoryview(bytearray(_HEADER.size))

    def send(self, message: object) -> None:
        """Put a message on its way; to a side that is gone it goes nowhere."""
        if self._transport and not self._transport.is_closing():
            self._transport.writelines(pack(message))

    def close(self) -> None:
        """Hang up, at once."""
        if self._transport:
            self._transport.abort()

    def finish(self) -> None:
        """Hang up as soon as everything is sent."""
        if self._transport:
            self._transport.close()

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none, and can what these can

    def connection_lost(self, error: Exception | None) -> None:
        """End; an end of file and a broken connection are the same."""
        self._ended()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: exactly what is missing of the header or of the rest."""
        return self._missing

    def buffer_updated(self, nbytes: int) -> None:
        """Take in bytes that have arrived."""
        self._missing = self._missing[nbytes:]
        if self._missing:
            return
        whole, counts = self._whole, self._counts
        if counts is None:
            size, num_pickled, num_buffers = _HEADER.unpack(whole)
            self._counts = num_pickled, num_buffers
            self._expect(size)
        else:
            self._counts = None
            self._expect(_HEADER.size)
            self._receive(unpack(whole, *counts))

    def _expect(self, size: int) -> None:
        self._whole = self._missing = memoryview(bytearray(size))


_FIELDS = tuple(each.name for each in fields(EngineStats))
_values = attrgetter(*_FIELDS)


def _stats(*values: int) -> EngineStats:
    return EngineStats(**dict(zip(_FIELDS, values, strict=True)))


_end_values = attrgetter(*(each.name for each in fields(Finished)))


# A dataclass with slots pickles by way of two Python functions and its fields; these three cross every step.
copyreg.pickle(EngineStats, lambda stats: (_stats, _values(stats)))
copyreg.pickle(Token, lambda token: (Token, (token.index, token.id, token.logprob)))
copyreg.pickle(Finished, lambda end: (Finished, _end_values(end)))
