"""From the headers of a request to who asks, and what they may ask for."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from arriero.core import Caller
from arriero.errors import Forbidden, InvalidKey
from arriero.store.keys import Key, hash_of, id_of

Headers = Iterable[tuple[bytes, bytes]]

STATIC_ID = "static"
"""What the key of the settings is called in usage."""
ADMIN_ROUTES = frozenset({"admin", "metrics"})
"""First parts of paths that need an admin's key, or one whose endpoints name them without a pattern."""
EVERYBODYS = frozenset({"models", "usage"})
"""First parts of paths that answer every key that reads them, about what is its own."""
_READING = ("GET", "HEAD")
_NOBODY = hash_of(b"")


class Keyring:
    """Knows keys by their hashes."""

    def __init__(self, static: str | None = None, clock: Callable[[], float] = time.time) -> None:
        """`static` is a key that may do everything."""
        self._static = None if static is None else hash_of(static.encode())
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._read: tuple[Key, ...] = ()

    def take(self, keys: tuple[Key, ...]) -> None:
        """Know these keys and no others; costs nothing when they are the same tuple as the last time."""
        if keys is not self._read:
            self._read = keys
            self._keys = {key.id: key for key in keys}

    @property
    def empty(self) -> bool:
        """Whether there has never been a key; revoked ones are keys."""
        return not self._keys and self._static is None

    def identify(self, headers: Headers) -> Key | None:
        """The key that a request has; None: the one of the settings. Raises `InvalidKey`.

        Every text goes the same way, whatever it is: it is hashed, and the hash is compared in constant time with
        the one of the key that has its public id, or with one that nothing has. What is found by the id in a table
        is no secret.
        """
        text = _key_text(headers)
        hashed = hash_of(text)
        key = self._keys.get(id_of(text))
        is_static = hmac.compare_digest(hashed, self._static or _NOBODY)
        is_right = hmac.compare_digest(hashed, key.hash if key else _NOBODY)
        if is_static and self._static and text:
            return None
        if not is_right or key is None:
            raise InvalidKey("Incorrect API key provided.")
        if key.revoked is not None:
            raise InvalidKey("The API key has been revoked.")
        if key.expires is not None and key.expires <= self._clock():
            raise InvalidKey("The API key has expired.")
        return key


def caller_with(key: Key | None) -> Caller:
    """Who asks with a key; None: the one of the settings."""
    if key is None:
        return Caller(id=STATIC_ID)
    return Caller(id=key.id, models=key.models, endpoints=key.endpoints, admin=key.admin, weight=key.weight)


def authorize(caller: Caller, method: str, path: str) -> None:
    """Raise `Forbidden` where the caller may not ask for what lies at `path`."""
    name = path.strip("/").removeprefix("v1/")
    first = name.partition("/")[0]
    if first in ADMIN_ROUTES:
        allowed = caller.admin or first in caller.endpoints
    else:
        own = first in EVERYBODYS and method in _READING
        allowed = own or any(fnmatchcase(name, pattern) for pattern in caller.endpoints)
    if not allowed:
        raise Forbidden("You have insufficient permissions for this operation: the API key is not for this endpoint.")


def _key_text(headers: Headers) -> bytes:
    """The key that is given, by whatever header; raises `InvalidKey` where there is none, or no telling which."""
    found: dict[bytes, list[bytes]] = {b"authorization": [], b"x-api-key": [], b"api-key": []}
    for name, value in headers:
        if name in found:
            found[name].append(value)
    for name, values in found.items():
        if len(values) > 1:
            raise InvalidKey(f"The header '{name.decode()}' was given more than once.")
    for value in found[b"authorization"]:
        scheme, _, text = value.strip().partition(b" ")
        if scheme.lower() == b"bearer" and text.strip():
            return text.strip()
    for value in (*found[b"x-api-key"], *found[b"api-key"]):
        return value.strip()
    if found[b"authorization"]:
        raise InvalidKey("The header 'authorization' is not of the form 'Bearer KEY'.")
    raise InvalidKey(
        "You didn't provide an API key. Give it in the header 'Authorization: Bearer KEY', or in 'x-api-key'."
    )
