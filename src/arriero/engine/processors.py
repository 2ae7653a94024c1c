"""What changes a row of logits before a token is chosen: penalties, bans and biases, for rows that ask for any.

    repetition_penalty      prompt and answer; Keskar et al., "CTRL", 2019, with the sign taken into account as in
                            transformers: a positive logit is divided by it, a negative one multiplied
    presence_penalty, frequency_penalty     answer only; OpenAI's API reference
    logit_bias              added; OpenAI's API reference
    no_repeat_ngram_size    prompt and answer, as in transformers
    min_tokens              no end token before

They apply in this order. Each follows its sequence token by token, so a step costs no more late in an answer than
early in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from arriero.core import GenerationRequest, Sampling
from arriero.errors import InvalidRequest

LARGEST = np.float32(1e30)
"""No penalty lifts a logit above this."""

Ngrams = dict[tuple[int, ...], set[int]]
"""What has followed each sequence of tokens."""


def check(sampling: Sampling) -> None:
    """Refuse what no processor can mean.

    Raises:
        InvalidRequest: naming the parameter.
    """
    if not 0.01 <= sampling.repetition_penalty <= 100:
        raise InvalidRequest("repetition_penalty must be between 0.01 and 100.", param="repetition_penalty")
    if not -2 <= sampling.presence_penalty <= 2:
        raise InvalidRequest("presence_penalty must be between -2 and 2.", param="presence_penalty")
    if not -2 <= sampling.frequency_penalty <= 2:
        raise InvalidRequest("frequency_penalty must be between -2 and 2.", param="frequency_penalty")
    if sampling.no_repeat_ngram_size < 0:
        raise InvalidRequest("no_repeat_ngram_size must be at least 0.", param="no_repeat_ngram_size")
    if not all(math.isfinite(bias) and -100 <= bias <= 100 for _, bias in sampling.logit_bias):
        raise InvalidRequest("logit_bias must be between -100 and 100.", param="logit_bias")
    if len({token for token, _ in sampling.logit_bias}) < len(sampling.logit_bias):
        raise InvalidRequest("logit_bias must have each token once.", param="logit_bias")


class _Prompt:
    """What the choices of one prompt share; computed when the first of them draws."""

    def __init__(self, tokens: Sequence[int], ngram_size: int) -> None:
        self._tokens = tokens
        self._ngram_size = ngram_size

    @cached_property
    def distinct(self) -> NDArray[np.intp]:
        """Its token ids, each once."""
        return np.unique(np.array(self._tokens, dtype=np.intp))

    @cached_property
    def ngrams(self) -> Ngrams:
        """What has followed each n - 1 of its tokens."""
        ngrams: Ngrams = {}
        _extend(ngrams, self._tokens, range(len(self._tokens)), self._ngram_size)
        return ngrams


class Processors:
    """The processors of one sequence, and what they remember of it."""

    def __init__(self, request: GenerationRequest, prompt: Sequence[int]) -> None:
        self._sampling = request.sampling
        self._min_length = len(prompt) + request.min_tokens
        self._ends = np.array(sorted(request.end_token_ids), dtype=np.intp)
        self._biased = np.array([token for token, _ in request.sampling.logit_bias], dtype=np.intp)
        self._biases = np.array([bias for _, bias in request.sampling.logit_bias], dtype=np.float32)
        self._prompt = _Prompt(prompt, request.sampling.no_repeat_ngram_size)
        self._num_read = len(prompt)
        self._ngrams: Ngrams = {}  # those that end in the answer
        self._counts: _Counts | None = None

    def apply(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float32]:
        """A row [vocab_size] with everything taken into account; the row itself stays as it is.

        `tokens` are prompt and answer so far, which go on from what they were at the last call. Where the bans
        would leave no token at all, they do not apply.
        """
        self._read(tokens)
        row = logits.copy()
        if self._counts:
            self._counts.penalise(row, self._sampling)
        row[self._biased] += self._biases
        bans = self._bans(tokens, len(row))
        before = row[bans]
        row[bans] = -np.inf
        if len(bans) and row.max() == -np.inf:
            row[bans] = before
        return row

    def copy(self) -> Processors:
        """Independent ones in the same state, for a sequence that forks."""
        other = object.__new__(Processors)
        other.__dict__.update(self.__dict__)
        other._ngrams = {prefix: set(tokens) for prefix, tokens in self._ngrams.items()}
        other._counts = self._counts and self._counts.copy()
        return other

    def _read(self, tokens: Sequence[int]) -> None:
        sampling = self._sampling
        if self._counts is None and (
            sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
        ):
            self._counts = _Counts(self._prompt.distinct if sampling.repetition_penalty != 1 else ())
        if self._counts:
            for token in tokens[self._num_read :]:
                self._counts.add(token)
        if sampling.no_repeat_ngram_size:
            _extend(self._ngrams, tokens, range(self._num_read, len(tokens)), sampling.no_repeat_ngram_size)
        self._num_read = len(tokens)

    def _bans(self, tokens: Sequence[int], vocab_size: int) -> NDArray[np.intp]:
        """The tokens that may not come next."""
        size = self._sampling.no_repeat_ngram_size
        repeating: set[int] = set()
        if 0 < size <= len(tokens):
            prefix = tuple(tokens[len(tokens) - size + 1 :])
            repeating = self._prompt.ngrams.get(prefix, set()) | self._ngrams.get(prefix, set())
        bans = np.array(list(repeating), dtype=np.intp)
        if len(tokens) < self._min_length:
            bans = np.concatenate([bans, self._ends[self._ends < vocab_size]])
        return bans


def processors_of(request: GenerationRequest, prompt: Sequence[int]) -> Processors | None:
    """The processors for a choice of this prompt; None when the request asks for none."""
    sampling = request.sampling
    asked = (
        sampling.repetition_penalty != 1
        or sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.no_repeat_ngram_size
        or sampling.logit_bias
        or (request.min_tokens and request.end_token_ids)
    )
    return Processors(request, prompt) if asked else None


class _Counts:
    """How often each token that was seen is in the answer, in arrays that grow as it does."""

    def __init__(self, seen: Iterable[int]) -> None:
        """`seen` are in the prompt: not counted, but penalised for repetition."""
        self._places: dict[int, int] = {int(token): place for place, token in enumerate(seen)}
        self._ids = np.array(list(self._places), dtype=np.intp)
        self._counts = np.zeros(len(self._ids), dtype=np.float32)

    def add(self, token: int) -> None:
        """One more of this token in the answer."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            room = max(16, place)
            self._ids = np.concatenate([self._ids, np.zeros(room, dtype=np.intp)])
            self._counts = np.concatenate([self._counts, np.zeros(room, dtype=np.float32)])
        self._ids[place] = token
        self._counts[place] += 1

    def penalise(self, row: NDArray[np.float32], sampling: Sampling) -> None:
        """Apply the three penalties to a row, in place."""
        ids, counts = self._ids[: len(self._places)], self._counts[: len(self._places)]
        values = row[ids]
        if sampling.repetition_penalty != 1:
            penalty = np.float32(sampling.repetition_penalty)
            values = np.minimum(np.where(values < 0, values * penalty, values / penalty), LARGEST)
        values -= np.float32(sampling.presence_penalty) * (counts > 0)
        values -= np.float32(sampling.frequency_penalty) * counts
        row[ids] = values

    def copy(self) -> _Counts:
        other = object.__new__(_Counts)
        other._places, other._ids, other._counts = self._places.copy(), self._ids.copy(), self._counts.copy()
        return other


def _extend(ngrams: Ngrams, tokens: Sequence[int], ends: Iterable[int], size: int) -> None:
    """Note the sequences of `size` tokens whose last is at one of `ends`."""
    for end in ends:
        if end >= size - 1:
            ngrams.setdefault(tuple(tokens[end - size + 1 : end]), set()).add(tokens[end])
