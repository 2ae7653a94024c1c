"""Prompts that begin alike share the work: which slot holds the beginning of a prompt already.

What is shared is what was computed as part of a prompt. Tokens that were sampled are not: a runner may compute them
another way (attention sums in another order for one token than for several), and an answer must not depend on who came
before. But who asked may go on from the answer, so it is read as part of a prompt while there is nothing else to do
(`unread`). Where the runner computes both alike, or promises no invariance anyway, an answer is kept as it was
computed.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from arriero.engine.sequence import Sequence

LEAST_SHARED = 8
"""Fewer tokens in common are not worth a copy, and to keep fewer others is not worth one either."""


class Prefixes:
    """Sequences that have ended and whose slots still hold their prompts, least recently used first."""

    def __init__(self, capacity: int, least_own: int, *, with_answers: bool = False) -> None:
        """Holds at most `capacity` prompt tokens, none at all if that is 0.

        At least `least_own` tokens are computed together. Sequences are kept `with_answers` where it
        makes no difference how their tokens were computed.
        """
        self.num_tokens = 0
        self._capacity = capacity
        self._least_own = least_own
        self._with_answers = with_answers
        self._sequences: OrderedDict[Sequence, None] = OrderedDict()
        self._lengthened: set[Sequence] = set()

    def __len__(self) -> int:
        return len(self._sequences)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._sequences

    def find_source(self, sequence: Sequence, running: Iterable[Sequence]) -> None:
        """Set the sequence's source to the one with most in common; None if nobody has enough.

        Candidates are those that are kept and, of the running, those before the sequence itself. Prompts whose own
        probabilities are asked for are computed whole.
        """
        sequence.source, sequence.num_shared_tokens = None, 0
        if not self._capacity or sequence.scores is not None:
            return
        older = itertools.takewhile(lambda each: each is not sequence, running)
        for candidate in (*self._sequences, *older):
            shared = min(common(sequence, candidate), sequence.num_prompt_tokens - self._least_own)
            if shared > max(LEAST_SHARED - 1, sequence.num_shared_tokens):
                sequence.source, sequence.num_shared_tokens = candidate, shared
        if sequence.source and sequence.source in self._sequences:
            self._sequences.move_to_end(sequence.source)

    def ready(self, sequence: Sequence, running: Iterable[Sequence]) -> bool:
        """Whether what the sequence is to share, if anything, is there to be copied."""
        source = sequence.source
        if source and source.finished and (source not in self or source.num_read_tokens < sequence.num_shared_tokens):
            self.find_source(sequence, running)
            source = sequence.source
        return source is None or source.num_read_tokens >= sequence.num_shared_tokens

    def add(self, sequence: Sequence) -> list[Sequence]:
        """Keep a sequence that ended; returns those whose slots are then free, itself among them if it is not kept."""
        if self._with_answers and sequence.num_computed_tokens > sequence.num_prompt_tokens and not sequence.search:
            sequence.count_as_prompt(min(sequence.num_computed_tokens, len(sequence.tokens)))
        if not LEAST_SHARED <= sequence.num_read_tokens <= self._capacity or sequence.prompt_ids is None:
            return [sequence]
        covered = []
        for other in self._sequences:
            num_shared = common(sequence, other)
            if num_shared == sequence.num_read_tokens:
                self._sequences.move_to_end(other)
                return [sequence]
            if num_shared == other.num_read_tokens:
                covered.append(other)
        for other in covered:
            self.remove(other)
        self._sequences[sequence] = None
        self.num_tokens += sequence.num_prompt_tokens
        return covered + self.shrink(self._capacity)

    def remove(self, sequence: Sequence) -> None:
        """Let go of one; its slot is the caller's."""
        del self._sequences[sequence]
        self._lengthened.discard(sequence)
        self.num_tokens -= sequence.num_prompt_tokens

    def unread(self, num_free_tokens: int) -> Sequence | None:
        """The latest of which there are tokens to be read as a prompt: those of its answer, which counts as part of its
        prompt from now on. None if there is none, or no room for more tokens."""
        room = min(self._capacity, num_free_tokens) - self.num_tokens
        for sequence in reversed(self._sequences):
            num_more = sequence.num_sampled_tokens
            answered = sequence.num_computed_tokens >= sequence.num_prompt_tokens and not sequence.search
            if answered and self._least_own <= num_more <= room and not self._with_answers:
                sequence.num_computed_tokens = sequence.num_prompt_tokens
                sequence.count_as_prompt(len(sequence.tokens))
                self.num_tokens += num_more
                self._lengthened.add(sequence)
            if sequence in self._lengthened and sequence.num_read_tokens < sequence.num_prompt_tokens:
                return sequence
        return None

    def shrink(self, num_tokens: int) -> list[Sequence]:
        """Let go of the least recently used until at most so many tokens are held; those whose slots are then free."""
        gone = []
        while self.num_tokens > num_tokens:
            gone.append(self.pop())
        return gone

    def pop(self) -> Sequence:
        """Let go of the least recently used."""
        sequence = next(iter(self._sequences))
        self.remove(sequence)
        return sequence


def common(one: Sequence, other: Sequence) -> int:
    """With how many tokens both prompts begin, as far as `other` has read, or will read, its own."""
    assert one.prompt_ids is not None
    if other.prompt_ids is None or one.group.request.adapter != other.group.request.adapter:
        return 0
    reach = other.num_read_tokens if other.finished else other.num_prompt_tokens
    length = min(one.num_prompt_tokens, reach)
    differing = np.nonzero(one.prompt_ids[:length] != other.prompt_ids[:length])[0]
    return int(differing[0]) if len(differing) else length
