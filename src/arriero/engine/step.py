"""What the scheduler asks of a step, and what it gets back."""

from __future__ import annotations

from dataclasses import dataclass, field

from arriero.core import Logprob, Row
from arriero.engine.beams import Candidate
from arriero.engine.sampling import Draw
from arriero.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Scoring:
    """Prompt tokens whose probability is asked for, all of one row."""

    sequence: Sequence
    first_row: int
    """The row of logits that predicts the first of them; the next rows predict the others."""
    tokens: list[int]


@dataclass(slots=True)
class Step:
    """What the runner is to do next: the copies at once, the truncations, the frees, the rows; then what its logits
    are for."""

    copies: list[tuple[int, int]]
    """(source slot, destination slot)."""
    frees: list[int]
    truncations: list[tuple[int, int]] = field(default_factory=list)
    """(slot, tokens that it keeps)."""
    rows: list[Row] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    """What to sample from the rows' logits."""
    sequences: list[Sequence] = field(default_factory=list)
    """Whose rows these are, in the order of `rows`."""
    drawing: list[Sequence] = field(default_factory=list)
    """Whose draws these are, in the order of `draws`."""
    scorings: list[Scoring] = field(default_factory=list)
    expansions: dict[Sequence, dict[int, int]] = field(default_factory=dict)
    """Beam searches that go on, each by its first sequence: the row of logits for each place that has a beam."""
    num_logits: int = 0
    """Rows of logits that the runner will return."""
    started: float = 0.0
    """When it was planned, by the scheduler's clock."""


@dataclass(frozen=True, slots=True)
class Results:
    """What came of a step, in the order of its draws, scorings and expansions."""

    tokens: list[int] = field(default_factory=list)
    logprobs: dict[int, Logprob] = field(default_factory=dict)
    """By place among the draws, for those that ask."""
    scores: list[list[Logprob]] = field(default_factory=list)
    candidates: list[list[Candidate]] = field(default_factory=list)
