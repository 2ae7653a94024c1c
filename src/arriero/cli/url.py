"""Where this machine reaches a server of its own."""

from __future__ import annotations

from ipaddress import ip_address


def own_url(host: str, port: int, *, secure: bool) -> str:
    """The URL of a server that listens on `host`, a name or an address; all addresses are reached by the loopback's."""
    try:
        address = ip_address(host)
    except ValueError:
        pass  # a name
    else:
        if address.is_unspecified:
            address = ip_address("127.0.0.1" if address.version == 4 else "::1")
        host = f"[{address}]" if address.version == 6 else str(address)
    return f"{'https' if secure else 'http'}://{host}:{port}"
