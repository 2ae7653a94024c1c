"""uvicorn, set up and ended the way that a server of long answers wants it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import uvicorn

from arriero.errors import ConfigError

logger = logging.getLogger(__name__)

_SLACK = 5
"""Seconds after the grace period in which the last bytes have to be on their way."""


class Server(uvicorn.Server):
    """Serves until SIGINT or SIGTERM, then lets running answers finish; a second signal stops at once."""

    def __init__(
        self,
        application: Any,
        *,
        grace: float,
        drain: Callable[[], Coroutine[Any, Any, None]],
        on_ready: Callable[[], None],
    ) -> None:
        """`drain` is awaited while the last connections finish; it ends what still runs after `grace` seconds.

        The application's lifespan is not run: whoever calls has started what it needs.
        """
        super().__init__(
            uvicorn.Config(
                application,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(grace) + _SLACK,
            )
        )
        self._drain = drain
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listen to the signals without raising them again in the end, as uvicorn does: the exit status is 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, and say so."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, wait for those that are busy, close the application."""
        async with asyncio.TaskGroup() as ending:
            ending.create_task(self._drain())
            await super().shutdown(sockets)

    def _stop(self) -> None:
        if self.should_exit:
            os._exit(0)  # At once: a step that is being computed would hold up every other way.
        self.should_exit = True
        if self.server_state.tasks:
            logger.info("Stopping; running answers may finish, a second signal stops at once")


def bind(host: str, port: int) -> socket.socket:
    """Take the address before anything slow happens; raises `ConfigError` saying why it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigError(f"cannot listen on {host}: {error.strerror}") from None
    listener = socket.socket(family, kind, protocol)
    if os.name == "posix":  # Elsewhere it lets two servers have the same port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        taken = error.errno == errno.EADDRINUSE
        reason = "the port is taken, choose another with --port" if taken else os.strerror(error.errno or 0).lower()
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}") from None
    return listener


def url(listener: socket.socket) -> str:
    """The URL at which this machine reaches the listener."""
    host, port = listener.getsockname()[:2]
    reachable = ipaddress.ip_address(host)
    if reachable.is_unspecified:
        reachable = ipaddress.ip_address("127.0.0.1" if reachable.version == 4 else "::1")
    return f"http://{f'[{reachable}]' if reachable.version == 6 else reachable}:{port}"


def is_public(listener: socket.socket) -> bool:
    """Whether other machines might reach the listener."""
    return not ipaddress.ip_address(listener.getsockname()[0]).is_loopback
