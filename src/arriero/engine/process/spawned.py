"""Child processes, as they are started: one of them perhaps before anybody knows what it is to open.

What a child imports takes as long as what its parent does, and two cores can do both at the same time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Sequence
from typing import NamedTuple


class Spawned(NamedTuple):
    """A process, and our end of the socket to it."""

    process: subprocess.Popen[bytes]
    connection: socket.socket


_early: dict[tuple[str, ...], Spawned] = {}


def spawn(command: Sequence[str]) -> Spawned:
    """A process that calls `arriero.engine.process.child.run`, or the one of that command that waits already.

    Raises `OSError` if none can be started.
    """
    if early := _early.pop(tuple(command), None):
        if early.process.poll() is None:
            return early
        early.connection.close()
    return _start(command)


def spawn_early(command: Sequence[str]) -> None:
    """Start a process for the first call of `spawn`; where that fails, the call will."""
    with contextlib.suppress(OSError):
        _early[tuple(command)] = _start(command)


def discard_early() -> None:
    """End the process that nobody has asked for."""
    while _early:
        _, (process, connection) = _early.popitem()
        connection.close()
        process.kill()
        process.wait()


def _start(command: Sequence[str]) -> Spawned:
    ours, its = socket.socketpair()
    with its:
        try:
            process = subprocess.Popen(
                [*command, str(its.fileno()), str(os.getpid())],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a server prints is its own
                process_group=0,  # Ctrl-C is for the parent alone
            )
        except OSError:
            ours.close()
            raise
    return Spawned(process, ours)
