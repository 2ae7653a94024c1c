"""Where a server would listen: whether the place is free, and safe."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from ipaddress import ip_address
from pathlib import Path

from arriero.cli.doctor.finding import Finding, command, fail, ok, warn
from arriero.cli.doctor.processes import listener
from arriero.cli.doctor.store import num_keys
from arriero.cli.url import own_url
from arriero.config import Settings
from arriero.errors import ArrieroError, ConfigError

_ROOM = 128
"""Open files beside those of requests: weights, logs, the store, pipes."""
_WITH_TLS = command("arriero", "serve", "--tls-certificate", "cert.pem", "--tls-key", "key.pem")


def check_address(settings: Settings) -> Iterator[Finding]:
    """The address can be listened on, or somebody who is named listens there."""
    from arriero.cli import listen

    try:
        listen.check_tls(settings)
    except ConfigError as error:
        if settings.tls_certificate and settings.tls_key:
            mend = command("openssl", "x509", "-in", settings.tls_certificate, "-noout", "-text")
        else:
            mend = _WITH_TLS
        yield fail("tls", str(error), mend)
    if settings.unix_socket:
        yield _check_file(settings.unix_socket)
        return
    where = f"{settings.host} port {settings.port}"
    try:
        with closing(listen.bind_port(settings.host, settings.port)):
            yield ok("port", f"{where} is free")
    except ConfigError as error:
        yield _taken(settings, str(error))
    yield from _check_public(settings)


def check_open_files(settings: Settings) -> Iterator[Finding]:
    """As many files may be open as there may be requests."""
    try:
        import resource
    except ImportError:  # not on every system
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    remote = any("upstream" in table for table in settings.models)
    needed = (settings.slots + settings.max_queue) * (2 if remote else 1) + _ROOM
    limit = "any number of" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    if soft != resource.RLIM_INFINITY and soft < needed:
        found = f"{soft:,} files may be open, {needed:,} may be wanted for {settings.slots} slots and a full queue"
        raised = needed if hard == resource.RLIM_INFINITY or needed <= hard else hard
        yield warn("files", found, f"ulimit -n {raised}")
    else:
        yield ok("files", f"{limit} files may be open, {needed:,} are enough")


def _taken(settings: Settings, problem: str) -> Finding:
    free = _free_port(settings.host, settings.port)
    other = command("arriero", "serve", "--port", free or 0)
    if "taken" not in problem:
        return fail(
            "port", problem, other if "permission" in problem else command("arriero", "serve", "--host", "127.0.0.1")
        )
    who = listener(settings.port)
    owner = f" (process {who[0]}, {who[1]})" if who else ""
    url = own_url(settings.host, settings.port, secure=settings.tls_certificate is not None)
    if state := asyncio.run(_state(url)):
        return warn("port", f"an Arriero listens on port {settings.port} already{owner}, and is {state}", other)
    return fail("port", f"something else listens on port {settings.port}{owner}", other)


async def _state(url: str) -> str | None:
    """How the Arriero is that answers there; None where it is none."""
    from arriero.cli.remote import Remote

    remote = Remote(url)
    try:
        live = (await remote.health("live")).get("status")
        ready = (await remote.health("ready")).get("status")
    except ArrieroError:
        return None
    finally:
        await remote.close()
    if live not in ("ok", "failed"):
        return None
    return "not alive" if live == "failed" else str(ready or "alive")  # The second may ask for a key.


def _check_public(settings: Settings) -> Iterator[Finding]:
    try:
        address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][4][0]
    except socket.gaierror:
        return  # Told with the port.
    if ip_address(address).is_loopback:
        return
    keyed = settings.api_key or num_keys(settings.store)
    if settings.no_auth:
        yield warn(
            "access",
            f"anyone who can reach {settings.host} could use the server: --no-auth asks for no key",
            command("arriero", "keys", "create", "NAME"),
        )
    elif not keyed:
        yield fail(
            "access",
            f"others may reach {settings.host}, and there are no keys: the server would not start",
            command("arriero", "keys", "create", "NAME", "--store", settings.store),
        )
    elif not settings.tls_certificate:
        yield warn(
            "access",
            f"others may reach {settings.host}, and keys would cross the network in plain text: put a proxy "
            "with HTTPS before it, or give a certificate",
            _WITH_TLS,
        )
    else:
        yield ok("access", f"others may reach {settings.host}, and need a key")


def _check_file(path: Path) -> Finding:
    if not path.exists():
        return (
            ok("port", f"{path} is free")
            if path.parent.is_dir()
            else fail("port", f"{path.parent} is not there", command("mkdir", "-p", path.parent))
        )
    if not path.is_socket():
        return fail("port", f"{path} is there already and no socket", command("mv", path, f"{path}.old"))
    with socket.socket(socket.AF_UNIX) as trial:
        try:
            trial.connect(str(path))
        except OSError:
            return ok("port", f"{path} was left by a server that is gone; the next one replaces it")
    return fail("port", f"somebody listens on {path}", command("fuser", "-v", path))


def _free_port(host: str, port: int) -> int | None:
    """The next port that is free."""
    from arriero.cli import listen

    for each in range(max(port, 1023) + 1, min(port + 100, 65_536)):
        with suppress(ConfigError), closing(listen.bind_port(host, each)):
            return each
    return None
