"""What the two halves of an engine in a child process say to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arriero.core import Encoded, EncodingRequest, EngineStats, Event, GenerationRequest


@dataclass(frozen=True, slots=True)
class Order:
    """To the child, first of all: what engine to open."""

    content: Any
    """For the function that opens it to understand."""
    log_level: int
    """Less severe log lines stay in the child."""


@dataclass(frozen=True, slots=True)
class Ask:
    """To the child: work on a request, which has this number from now on."""

    number: int
    request: GenerationRequest | EncodingRequest


@dataclass(frozen=True, slots=True)
class Abort:
    """To the child: nobody waits for this request any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Close:
    """To the child: end everything, and yourself."""


@dataclass(frozen=True, slots=True)
class Progress:
    """From the child: how far something slow is; what it is and the numbers are for who asked to hear of it."""

    content: Any


@dataclass(frozen=True, slots=True)
class Ready:
    """From the child: the engine is started."""

    about: Any
    """What the function that opened it has to say of it."""
    context: int
    source_context: int
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class Failed:
    """From the child, before it ends: the engine could not be started, or has failed."""

    error: Exception


@dataclass(frozen=True, slots=True)
class News:
    """From the child: what happened to requests, by their numbers; after an error nothing more comes."""

    items: Sequence[tuple[int, Sequence[Event | Encoded] | Exception]]
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class Beat:
    """From the child, once in a while: it lives, and how much it has worked."""

    stats: EngineStats
    processor_seconds: float
    """That the child has computed for so far, all its threads together."""
