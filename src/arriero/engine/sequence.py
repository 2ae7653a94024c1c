"""What the scheduler remembers of a request: one group of sequences, each with a slot of its own.

A sequence is a choice, or one of the places in which a beam search keeps its beams.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from arriero.compute import RunnerInfo
from arriero.core import Constraint, EncodingRequest, GenerationRequest, Logprob
from arriero.engine.beams import BeamSearch
from arriero.engine.guesses import Guesses
from arriero.engine.processors import Processors, processors_of


@dataclass(eq=False, slots=True)
class Group:
    """One request in the engine, admitted or waiting; also the handle by which it is aborted."""

    request: GenerationRequest
    sequences: list[Sequence] = field(default_factory=list)
    num_unfinished: int = 0
    queued_at: float = 0.0
    """When it came, in seconds."""
    queue_seconds: float = 0.0
    """How long it waited until it was admitted."""

    @property
    def num_choices(self) -> int:
        """Choices over all prompts."""
        return len(self.request.prompts) * self.request.num_choices

    def family(self, prompt: int) -> list[Sequence]:
        """The sequences that share a prompt; the first reads it."""
        size = num_slots(self.request)
        return self.sequences[prompt * size : (prompt + 1) * size]

    def end(self) -> None:
        """Let go of its sequences, which know it: in a circle they would stay until the garbage collector comes."""
        for sequence in self.sequences:
            sequence.leader = None
        self.sequences = []


@dataclass(eq=False, slots=True)
class Sequence:
    """What one slot is for: its tokens, and how many of them the slot holds."""

    group: Group
    prompt: int
    """Index of its prompt in the request."""
    index: int
    """The choice's index in the request's events; under beams the place in the search."""
    tokens: list[int]
    """The prompt, or what an encoder-decoder's answers begin with; then what was sampled."""
    num_prompt_tokens: int
    """Those that were not sampled."""
    inputs: tuple[int, ...]
    """The prompt of an encoder-decoder, which its encoder reads; empty for a decoder."""
    constraint: Constraint | None
    processors: Processors | None
    search: BeamSearch | None = None
    """What decides on its tokens, if it is not a choice of its own."""
    scores: list[Logprob | None] | None = None
    """The prompt's log-probabilities as far as they are known, if this is the sequence that finds them out."""
    leader: Sequence | None = None
    """The sequence that reads the prompt they share, until it has."""
    followers: list[Sequence] = field(default_factory=list)
    """The sequences that will copy this one's slot when it has read the prompt."""
    prompt_ids: NDArray[np.int64] | None = None
    """The prompt once more, quick to compare, if this is the sequence that reads it."""
    source: Sequence | None = None
    """A sequence whose prompt begins like this one's, from which to copy the first `num_shared_tokens`."""
    num_shared_tokens: int = 0
    slot: int = -1
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    """Tokens of the prompt that were copied instead of computed."""
    guesses: Guesses | None = None
    """What it may say next, where somebody has looked."""
    num_reserved_tokens: int = 0
    """Tokens of the key/value budget that are set aside for it; see `arriero.engine.budget`."""
    finished: bool = False

    @property
    def num_held_tokens(self) -> int:
        """Tokens that its slot holds when all of its own are computed."""
        return len(self.inputs) + len(self.tokens)

    @property
    def num_most_tokens(self) -> int:
        """Tokens that it may come to hold."""
        return len(self.inputs) + self.num_prompt_tokens + self.group.request.max_tokens

    @property
    def num_read_tokens(self) -> int:
        """Prompt tokens that its slot holds."""
        return min(self.num_computed_tokens, self.num_prompt_tokens)

    def guess(self, info: RunnerInfo) -> list[int]:
        """Tokens that it may say next; none where there is no room for them or drawing could not verify them."""
        most = min(info.num_guesses, self.num_reserved_tokens - self.num_held_tokens)
        if most <= 0 or self.processors or self.search or len(self.tokens) + info.num_guesses > info.context:
            return []
        self.guesses = self.guesses or Guesses()
        return self.guesses.guess(self.tokens, most)

    def count_as_prompt(self, num_tokens: int) -> None:
        """Let the first so many tokens be its prompt, which it has ended and others may begin like."""
        self.num_prompt_tokens = num_tokens
        self.prompt_ids = np.array(self.tokens[:num_tokens])

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens beyond the prompt."""
        return len(self.tokens) - self.num_prompt_tokens


def num_slots(request: GenerationRequest) -> int:
    """Slots that each prompt takes."""
    return request.beams.num_beams if request.beams else request.num_choices


def cost_of(request: GenerationRequest | EncodingRequest) -> int:
    """About how many tokens it takes to answer."""
    if isinstance(request, EncodingRequest):
        return sum(map(len, request.inputs))
    likely = min(request.likely_tokens or request.max_tokens, request.max_tokens)
    return sum(map(len, request.prompts)) + len(request.prompts) * num_slots(request) * likely


def group_of(request: GenerationRequest, constraint: Constraint | None, decoder_start: tuple[int, ...] = ()) -> Group:
    """Lay out a request's sequences: the first of every prompt leads, the others follow it.

    `decoder_start` is an encoder-decoder's: prompts are inputs of the encoder, and this is what the decoder goes on
    from.
    """
    group = Group(request)
    for prompt, given in enumerate(request.prompts):
        tokens, inputs = (decoder_start, given) if decoder_start else (given, ())
        processors = processors_of(request, tokens)
        searching = request.beams is not None and request.beams.num_beams > 1
        search = BeamSearch(request, prompt, constraint, processors, decoder_start) if searching else None
        leader = None
        for place in range(num_slots(request)):
            sequence = Sequence(
                group=group,
                prompt=prompt,
                index=place if search else len(group.sequences),
                tokens=list(tokens),
                num_prompt_tokens=len(tokens),
                inputs=inputs,
                constraint=constraint.copy() if constraint else None,
                processors=processors.copy() if processors else None,
                search=search,
                leader=leader,
            )
            if leader is None:
                leader = sequence
                leader.prompt_ids = np.fromiter(tokens, np.int64, len(tokens))
                leader.scores = None if request.prompt_logprobs is None else [None]
            else:
                leader.followers.append(sequence)
            likely = None if request.beams else request.likely_tokens
            sequence.num_reserved_tokens = min(
                sequence.num_held_tokens + (likely or request.max_tokens), sequence.num_most_tokens
            )
            group.sequences.append(sequence)
    group.num_unfinished = len(group.sequences)
    return group
