"""Which models leave memory so that another one fits: the rule alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resident:
    """A model in memory, or on its way there."""

    name: str
    num_bytes: int
    last_used: float
    """On any clock; larger is later."""
    may_go: bool
    """False while it is in use, or cannot be loaded again."""


def to_evict(residents: Iterable[Resident], needed: int, budget: int) -> list[str] | None:
    """Names of the models to unload so that `needed` more bytes fit into `budget`; 0 is a budget without bounds.

    Those whose last use is longest ago go first, no more of them than it takes. None when it would not fit even without
    all that may go.
    """
    residents = list(residents)
    excess = needed + sum(each.num_bytes for each in residents) - budget
    names: list[str] = []
    if not budget or excess <= 0:
        return names
    for each in sorted(residents, key=lambda resident: resident.last_used):
        if each.may_go and each.num_bytes:
            names.append(each.name)
            excess -= each.num_bytes
            if excess <= 0:
                return names
    return None
