"""uvicorn, set up and ended the way that a server of long answers wants it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import uvicorn

from arriero.cli.protocol import Connection, Timeouts, sweep
from arriero.config import Settings

logger = logging.getLogger(__name__)

_SLACK = 5
"""Seconds after the last answer in which its last bytes have to be on their way."""
_REST = 3
"""Seconds without requests after which it is time to put things in order."""


class Server(uvicorn.Server):
    """Serves until SIGINT or SIGTERM, then lets running answers finish; a second signal stops at once."""

    def __init__(
        self,
        application: Any,
        settings: Settings,
        *,
        drain: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        """`drain` is awaited before the last connections are closed: it ends what runs.

        The application's lifespan is not run: whoever calls has started what it needs.
        """
        config = uvicorn.Config(
            application,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_SLACK,
            timeout_keep_alive=settings.idle_timeout,
            proxy_headers=settings.trusted_proxies is not None,
            forwarded_allow_ips=settings.trusted_proxies,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        )
        super().__init__(config)
        self._timeouts = Timeouts(head=settings.head_timeout, body=settings.body_timeout, send=settings.send_timeout)
        self._drain = drain
        self._num_idle = _REST
        """Looks in succession that found no request being answered."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listen to the signals without raising them again in the end, as uvicorn does: the exit status is 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        yield

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections once a second."""
        if counter % 10 == 0:
            sweep(self.server_state.connections, self._timeouts)
            self._num_idle = 0 if self.server_state.tasks else self._num_idle + 1
            if self._num_idle == _REST:
                _give_back_memory()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the application end what runs while new requests are still told so, then close all connections."""
        await self._drain()
        await super().shutdown(sockets)

    def _stop(self) -> None:
        if self.should_exit:
            os._exit(0)  # At once: a step that is being computed would hold up every other way.
        self.should_exit = True
        if self.server_state.tasks:
            logger.info("Stopping; running answers may finish, a second signal stops at once")


def _give_back_memory() -> None:
    """Have glibc return what was freed to the system: after a crowd of large bodies it keeps hundreds of MB."""
    if trim := _malloc_trim():
        trim(0)


@functools.cache  # A library that is opened is a circle, and would be left each time.
def _malloc_trim() -> Callable[[int], int] | None:
    import ctypes  # here, as it takes a while

    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # Other C libraries have none.
