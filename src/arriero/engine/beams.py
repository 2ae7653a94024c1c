"""Beam search and beam-sample: the same search as transformers' `generate` with `num_beams`.

Each step looks at every token that any beam may go on with. The best candidates by their sum of log-probabilities
are picked (under sampling: drawn without replacement), so many that enough are left when some of them end. Those of
the first `num_beams` that end become hypotheses, scored by sum over length to the power of the length penalty; the
best `num_beams` of the others are the next beams. The search is over when no beam can do better than the worst of
`num_beams` hypotheses, as far as `early_stopping` looks into that, or when all have `max_tokens`.

Processors apply to log-probabilities, filters let at least one token more pass than there are end tokens, and the
temperature divides what is summed: all as there. Unlike there, a candidate that cannot be is none: where fewer than
`num_beams` are possible there are fewer beams.

A search knows nothing of slots; it numbers places, and says what must be copied from which place to which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from arriero.core import Constraint, Event, Finished, FinishReason, GenerationRequest, Logprob, Token
from arriero.engine.processors import Processors
from arriero.engine.sampling import COLDEST, draw_distinct, finite_peak, keep, largest, uniforms
from arriero.engine.scoring import log_sum, score_all


@dataclass(eq=False, slots=True)
class Beam:
    """An answer that goes on."""

    place: int
    tokens: list[int]
    """Prompt and answer."""
    constraint: Constraint | None
    processors: Processors | None
    score: float = 0.0
    """Sum of log-probabilities, as processors and temperature leave them."""
    logprobs: list[Logprob | None] = field(default_factory=list)
    """Of the answer's tokens; None where they are not asked for."""


class Candidate(NamedTuple):
    """A token with which a beam may go on."""

    beam: Beam
    token: int
    score: float
    """The beam's with this token."""
    logprob: Logprob | None


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """An answer that has ended."""

    score: float
    tokens: list[int]
    """The answer, the token that ended it included."""
    logprobs: list[Logprob | None]
    reason: FinishReason
    has_ending: bool
    """Whether the last token is an end of sequence."""


class BeamSearch:
    """The search for one prompt's choices."""

    def __init__(
        self,
        request: GenerationRequest,
        prompt: int,
        constraint: Constraint | None,
        processors: Processors | None,
        start: Sequence[int] = (),
    ) -> None:
        """`prompt` is the index of one of the request's prompts; `request.beams` is not None.

        `start` are the tokens with which an encoder-decoder's answer begins; empty: it goes on from the prompt.
        """
        assert request.beams
        self._request = request
        self._prompt = prompt
        self._spec = request.beams
        begun = list(start or request.prompts[prompt])
        self._num_prompt_tokens = len(begun)
        self._num_forced = max(0, len(start) - 1)
        """Tokens of `start` that count as an answer's where its length does, as in transformers: all but the first."""
        self._length = 0
        """Tokens that every beam's answer has."""
        self.beams = [Beam(0, begun, constraint, processors)]
        """Best first."""
        self._hypotheses: list[Hypothesis] = []  # best first, at most `num_beams`

    @property
    def decided(self) -> bool:
        """Nothing can change the result any more."""
        if not self.beams:
            return True
        if len(self._hypotheses) < self._spec.num_beams:
            return False
        if self._spec.early_stopping is True:
            return True
        hopeful = self._spec.early_stopping == "never" and self._spec.length_penalty > 0
        length = self._request.max_tokens if hopeful else self._length
        return self._normalised(self.beams[0].score, length) <= self._hypotheses[-1].score

    def candidates(self, logits: NDArray[np.float32], rows: Mapping[int, int]) -> list[Candidate]:
        """The candidates that one step picks, in the order picked; changes nothing.

        `logits` is float32 [rows, vocab_size]; `rows` says which row continues the beam of each place.

        Raises:
            EngineDied: the logits are not finite.
        """
        rows_of_beams = [logits[rows[beam.place]] for beam in self.beams]
        choices = [self._continuations(beam, row) for beam, row in zip(self.beams, rows_of_beams, strict=True)]
        scores = np.concatenate([values for _, values in choices])
        ids = np.concatenate([ids for ids, _ in choices])
        owners = np.repeat(np.arange(len(choices)), [len(values) for values, _ in choices])
        picked = [place for place in self._pick(scores) if scores[place] > -np.inf]
        logprobs = self._logprobs(rows_of_beams, [(int(owners[place]), int(ids[place])) for place in picked])
        return [
            Candidate(self.beams[owners[place]], int(ids[place]), float(scores[place]), logprob)
            for place, logprob in zip(picked, logprobs, strict=True)
        ]

    def take(self, candidates: list[Candidate]) -> list[tuple[int, int]]:
        """Go on with the candidates; what must be copied, as (source place, destination place), all at once."""
        self._length += 1
        going: list[tuple[Candidate, Constraint | None]] = []
        for rank, candidate in enumerate(candidates):
            constraint = candidate.beam.constraint and candidate.beam.constraint.copy()
            if reason := self._ends(candidate, constraint):
                if rank < self._spec.num_beams:
                    self._finish(candidate, reason)
            else:
                going.append((candidate, constraint))
        going.sort(key=lambda going_on: -going_on[0].score)
        return self._go_on(going[: self._spec.num_beams])

    def events(self, num_cached_tokens: int = 0, queue_seconds: float = 0.0) -> list[Event]:
        """What is to be told once the search is decided: the best hypotheses, each with all its tokens.

        Where fewer than `num_choices` answers are possible, the last of them stands for the missing ones.
        """
        events: list[Event] = []
        for choice in range(self._request.num_choices):
            index = self._prompt * self._request.num_choices + choice
            hypothesis = self._hypotheses[min(choice, len(self._hypotheses) - 1)]
            scored = zip(hypothesis.tokens, hypothesis.logprobs, strict=True)
            tokens = [Token(index, token, logprob) for token, logprob in scored]
            ending = tokens.pop() if hypothesis.has_ending else None
            num_tokens = len(hypothesis.tokens)
            end = Finished(index, hypothesis.reason, num_tokens, num_cached_tokens, ending, queue_seconds)
            events += [*tokens, end]
        return events

    # Candidates

    @property
    def _num_candidates(self) -> int:
        return self._spec.num_beams * (1 + max(1, len(self._request.end_token_ids)))

    def _continuations(self, beam: Beam, logits: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The tokens with which a beam may go on, ascending, and the scores that it then has."""
        finite_peak(logits)
        values = logits - np.float32(log_sum(logits))
        if beam.processors:
            values = beam.processors.apply(values, beam.tokens)
        sampling = self._request.sampling
        if sampling.temperature == 0:
            few = self._num_candidates < len(values)
            ids = largest(values, self._num_candidates) if few else np.arange(len(values))
            return ids, beam.score + values[ids].astype(np.float64)
        least = 1 + max(1, len(self._request.end_token_ids))
        ids = keep(values, sampling, least)
        return ids, beam.score + values[ids].astype(np.float64) / max(sampling.temperature, COLDEST)

    def _pick(self, scores: NDArray[np.float64]) -> list[int]:
        request = self._request
        if request.sampling.temperature == 0:
            picked: list[int] = np.argsort(-scores, kind="stable")[: self._num_candidates].tolist()
            return picked
        weights = np.exp(scores - scores.max()).astype(np.float32)
        position = self._num_prompt_tokens + self._length
        choice = self._prompt * request.num_choices
        return draw_distinct(weights, uniforms(request.sampling.seed, choice, position, self._num_candidates))

    def _logprobs(self, rows: list[NDArray[np.float32]], continuations: list[tuple[int, int]]) -> list[Logprob | None]:
        """For each (beam, token) what the model itself thinks of it, if that is asked for."""
        num_top = self._request.logprobs
        if num_top is None:
            return [None] * len(continuations)
        scored: dict[tuple[int, int], Logprob] = {}
        for place, row in enumerate(rows):
            tokens = [token for beam, token in continuations if beam == place]
            scored |= zip([(place, token) for token in tokens], score_all(row, tokens, num_top), strict=True)
        return [scored[continuation] for continuation in continuations]

    # Beams

    def _ends(self, candidate: Candidate, constraint: Constraint | None) -> FinishReason | None:
        """Whether, and why, an answer is over with this token."""
        if candidate.token in self._request.end_token_ids:
            return "stop"
        if constraint and constraint.accept(candidate.token):
            return "stop"
        return "length" if self._length == self._request.max_tokens else None

    def _finish(self, candidate: Candidate, reason: FinishReason) -> None:
        tokens = [*candidate.beam.tokens[self._num_prompt_tokens :], candidate.token]
        logprobs = [*candidate.beam.logprobs, candidate.logprob]
        score = self._normalised(candidate.score, self._length)
        has_ending = candidate.token in self._request.end_token_ids
        self._hypotheses.append(Hypothesis(score, tokens, logprobs, reason, has_ending))
        self._hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
        del self._hypotheses[self._spec.num_beams :]

    def _go_on(self, going: list[tuple[Candidate, Constraint | None]]) -> list[tuple[int, int]]:
        """Make candidates the beams; each parent's first child keeps its place, the others get places that are free."""
        parents = {candidate.beam.place for candidate, _ in going}
        free = [place for place in range(self._spec.num_beams) if place not in parents]
        copies = []
        self.beams = []
        for candidate, constraint in going:
            parent = candidate.beam
            place = parent.place
            if place in parents:
                parents.remove(place)
            else:
                place = free.pop(0)
                copies.append((parent.place, place))
            self.beams.append(
                Beam(
                    place,
                    [*parent.tokens, candidate.token],
                    constraint,
                    parent.processors and parent.processors.copy(),
                    candidate.score,
                    [*parent.logprobs, candidate.logprob],
                )
            )
        return copies

    def _normalised(self, score: float, length: int) -> float:
        return score / math.pow(self._num_forced + length, self._spec.length_penalty)
