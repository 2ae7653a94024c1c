"""What the scheduler asks of a step, and what it gets back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from arriero.compute import Row, Want
from arriero.core import Logprob
from arriero.engine.beams import Candidate
from arriero.engine.encodings import Reading
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
    """What the runner is to do next: the copies at once, the truncations, the frees, the inputs, the rows; then what
    its logits are for."""

    copies: list[tuple[int, int]]
    """(source slot, destination slot)."""
    frees: list[int]
    truncations: list[tuple[int, int]] = field(default_factory=list)
    """(slot, tokens that it keeps)."""
    inputs: list[tuple[int, tuple[int, ...], int]] = field(default_factory=list)
    """(slot, tokens for the encoder, adapter)."""
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
    readings: list[Reading] = field(default_factory=list)
    """Further rows, read for their states, in this order."""
    guesses: list[int] = field(default_factory=list)
    """What the only sequence that draws may say: it goes on as far as it says that, and then says something else."""
    num_logits: int = 0
    """Rows of logits that the runner will return."""
    started: float = 0.0
    """When it was planned, by the scheduler's clock."""

    def add_row(self, sequence: Sequence, count: int, guesses: list[int] | None = None) -> None:
        """Give a sequence's next `count` tokens to the runner, and say what its logits are for.

        After its last token `guesses` of what it will say may follow, where it is the only one that draws.
        """
        if guesses:
            self._add_guessed(sequence, guesses)
            return
        start = sequence.num_computed_tokens
        end = start + count
        request = sequence.group.request
        goes_on = end == len(sequence.tokens) and request.max_tokens
        want = Want.NOTHING
        if start < sequence.num_prompt_tokens and sequence.scores is not None:
            want = Want.ALL
            scored = sequence.tokens[start + 1 : min(end + 1, sequence.num_prompt_tokens)]
            self.scorings.append(Scoring(sequence, self.num_logits, scored))
            self.num_logits += count - 1
        elif goes_on:
            want = Want.LAST
        self.rows.append(Row(sequence.slot, sequence.tokens[start:end], start, want, request.adapter))
        self.sequences.append(sequence)
        if want is Want.NOTHING:
            return
        if goes_on:
            self._use_logits(self.num_logits, sequence)
        self.num_logits += 1

    def _add_guessed(self, sequence: Sequence, guesses: list[int]) -> None:
        """Give a sequence's last token and guesses of the next ones to the runner; every place is drawn for itself."""
        start, request = sequence.num_computed_tokens, sequence.group.request
        tokens = [*sequence.tokens[start:], *guesses]
        self.rows.append(Row(sequence.slot, tokens, start, Want.ALL, request.adapter, guessed=True))
        self.sequences.append(sequence)
        self.guesses = guesses
        for place in range(len(tokens)):
            self._add_draw(self.num_logits + place, sequence, len(sequence.tokens) + place)
        self.num_logits += len(tokens)

    def add_reading(self, sequence: Sequence, count: int) -> None:
        """Let the runner read a sequence's next `count` tokens, of which no logits are wanted."""
        start = sequence.num_computed_tokens
        tokens = sequence.tokens[start : start + count]
        self.rows.append(Row(sequence.slot, tokens, start, Want.NOTHING, sequence.group.request.adapter))
        self.sequences.append(sequence)

    def _use_logits(self, row: int, sequence: Sequence) -> None:
        """Have everybody who goes on from a row of logits do so."""
        if sequence.search:
            first = sequence.group.family(sequence.prompt)[0]
            self.expansions.setdefault(first, {})[sequence.index] = row
            return
        self._add_draw(row, sequence, len(sequence.tokens))
        if sequence.followers and sequence.num_sampled_tokens == 0:
            for follower in sequence.followers:
                self._add_draw(row, follower, len(follower.tokens))

    def _add_draw(self, row: int, sequence: Sequence, position: int) -> None:
        request = sequence.group.request
        self.draws.append(
            Draw(
                row,
                request.sampling,
                sequence.index,
                position,
                sequence.processors,
                sequence.tokens,
                request.logprobs,
            )
        )
        self.drawing.append(sequence)


@dataclass(frozen=True, slots=True)
class Results:
    """What came of a step, in the order of its draws, scorings, expansions and readings."""

    tokens: list[int] = field(default_factory=list)
    logprobs: dict[int, Logprob] = field(default_factory=dict)
    """By place among the draws, for those that ask."""
    scores: list[list[Logprob]] = field(default_factory=list)
    candidates: list[list[Candidate]] = field(default_factory=list)
    sums: list[NDArray[np.float64]] = field(default_factory=list)
    """Of the states of each reading, float64 [hidden_size]."""
