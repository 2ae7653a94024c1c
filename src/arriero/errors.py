"""What can go wrong, as one tree.

    ArrieroError
    ├── InvalidRequest(param)      the caller's fault, and which parameter
    │   ├── UnknownModel           no such model here
    │   └── ContextOverflow        prompt and answer do not fit the model's context
    ├── InvalidKey                 no key, or one that opens nothing
    ├── Forbidden                  a good key, but not for this
    ├── RateLimited(retry_after)   more than the key may ask for in this time
    ├── Overloaded(retry_after)    nothing wrong with the request, no room for it now
    ├── DeadlineExceeded           the answer was not complete when the caller wanted it
    ├── EngineDied                 the engine failed while it worked on the request
    │   └── EngineClosed           it was closed meanwhile, as when the server stops
    ├── UpstreamError              another server, which answers for a model, failed
    │   ├── UpstreamTimeout        it was silent for too long
    │   └── UpstreamLoop           it asks this server in its turn
    ├── ModelLoadError             a model's files are missing or damaged
    │   └── UnsupportedModel       they are fine, but ask for something that this engine does not compute
    ├── StoreError                 keys and usage cannot be read or written
    └── ConfigError                a setting is unknown or out of range

Errors are raised, never returned. `arriero.wire.errors` holds the one table that gives each its HTTP
status, `type` and `code`; nothing below `wire` knows of HTTP.
"""

from __future__ import annotations

from functools import partial


class ArrieroError(Exception):
    """Root of every error that Arriero raises on purpose; `str(error)` is fit to be shown to a user."""


class InvalidRequest(ArrieroError):
    """The request cannot be honoured as it stands.

    `param` names the offending request field (dotted path, e.g. `messages.0.role`), None when the fault
    is in no single field. `code` is one word for the kind of fault, for programs to tell apart what
    the class does not.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class UnknownModel(InvalidRequest):
    """The request names a model that this server does not serve."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The model '{name}' does not exist or you do not have access to it.", param="model")
        self.name = name

    def __reduce__(self) -> tuple[type[UnknownModel], tuple[str]]:
        return type(self), (self.name,)


class ContextOverflow(InvalidRequest):
    """Prompt and answer together are longer than the model's context."""


class InvalidKey(ArrieroError):
    """No key was given, or one that is unknown, expired or revoked."""


class Forbidden(ArrieroError):
    """The key is good, but not for what was asked."""


class RateLimited(ArrieroError):
    """The key's limit is reached; try again after `retry_after` seconds.

    `kind` is what the limit counts: `requests`, `tokens`, or `insufficient_quota` for a budget, which lasts longer than
    a client should wait.
    """

    def __init__(self, message: str, *, retry_after: float, kind: str) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), retry_after=self.retry_after, kind=self.kind), self.args


class Overloaded(ArrieroError):
    """The engine's queue is full; try again after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), retry_after=self.retry_after), self.args


class DeadlineExceeded(ArrieroError):
    """The time that the caller gave the request is over, and the answer is not complete."""


class EngineDied(ArrieroError):
    """The engine failed; what it was generating is lost."""


class EngineClosed(EngineDied):
    """The engine was closed on purpose; another server, or this one once it is back, may answer."""

    retry_after = 1.0

    def __init__(self, message: str = "The engine was closed before the answer was complete; try again.") -> None:
        super().__init__(message)


class UpstreamError(ArrieroError):
    """Another server, which answers for a model, failed; the message names the model and neither address nor key."""


class UpstreamTimeout(UpstreamError):
    """It was silent for too long."""


class UpstreamLoop(UpstreamError):
    """It asks this server in its turn: the addresses in the configuration lead in a circle."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The request for the model '{name}' has come back: the addresses of its servers lead here.")
        self.name = name

    def __reduce__(self) -> tuple[type[UpstreamLoop], tuple[str]]:
        return type(self), (self.name,)


class ModelLoadError(ArrieroError):
    """A model cannot be loaded; the message says which file or tensor, and what was expected."""


class UnsupportedModel(ModelLoadError):
    """A whole model that the engine does not compute; another engine may. The message says what is not computed."""


class StoreError(ArrieroError):
    """The file of keys and usage cannot be read or written, or does not hold what was asked for."""


class ConfigError(ArrieroError):
    """A setting is unknown, malformed or out of range; the message names it."""
