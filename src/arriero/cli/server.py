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
import ssl
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from arriero.cli.protocol import Connection, Timeouts, sweep
from arriero.cli.url import own_url
from arriero.config import Settings
from arriero.errors import ConfigError

logger = logging.getLogger(__name__)

_SLACK = 5
"""Seconds after the last answer in which its last bytes have to be on their way."""


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


def bind(settings: Settings) -> socket.socket:
    """Take the address before anything slow happens; raises `ConfigError` saying why it cannot be had."""
    check_tls(settings)
    if settings.unix_socket:
        return _bind_file(settings.unix_socket)
    return bind_port(settings.host, settings.port)


def check_tls(settings: Settings) -> None:
    """Raise `ConfigError` unless there is a certificate with its key, or neither."""
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise ConfigError("--tls-certificate and --tls-key go together")
    if settings.tls_certificate and settings.tls_key:
        _check_certificate(settings.tls_certificate, settings.tls_key)


def _check_certificate(certificate: Path, key: Path) -> None:
    for path in (certificate, key):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise ConfigError(f"{certificate} and {key} are no certificate and its key: {error.reason or error}") from None


def bind_port(host: str, port: int) -> socket.socket:
    """Take a port; raises `ConfigError` saying why it cannot be had."""
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


def _bind_file(path: Path) -> socket.socket:
    """A socket file, in the place of one that a server which is gone has left."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            _remove_if_stale(path)
        listener.bind(str(path))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        reason = "there is something already" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ConfigError(f"cannot listen on {path}: {reason.lower()}") from None
    return listener


def _remove_if_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        try:
            trial.connect(str(path))
        except ConnectionRefusedError:  # nobody listens
            path.unlink()


def is_file(listener: socket.socket) -> bool:
    """Whether it listens on a socket file."""
    return listener.family == getattr(socket, "AF_UNIX", None)


def url(listener: socket.socket, *, secure: bool = False) -> str:
    """The URL at which this machine reaches the listener; of a socket file, one without a port."""
    if is_file(listener):
        return f"{'https' if secure else 'http'}://localhost"
    host, port = listener.getsockname()[:2]
    return own_url(host, port, secure=secure)


def is_public(listener: socket.socket) -> bool:
    """Whether other machines might reach the listener."""
    return not is_file(listener) and not ipaddress.ip_address(listener.getsockname()[0]).is_loopback
