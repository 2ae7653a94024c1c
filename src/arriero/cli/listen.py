"""The address that a server listens on: taken before anything slow is imported or done."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import ssl
from pathlib import Path

from arriero.cli.url import own_url
from arriero.config import Settings
from arriero.errors import ConfigError


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
