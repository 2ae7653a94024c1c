"""What the scheduler remembers of a request: one group of sequences, a sequence for each choice."""

from __future__ import annotations

from dataclasses import dataclass, field

from arriero.core import Constraint, GenerationRequest


@dataclass(eq=False, slots=True)
class Group:
    """One request in the engine, admitted or waiting; also the handle by which it is aborted."""

    request: GenerationRequest
    sequences: list[Sequence] = field(default_factory=list)
    num_unfinished: int = 0

    @property
    def num_reserved_tokens(self) -> int:
        """Tokens of the key/value budget that the whole request may come to hold."""
        return sum(sequence.num_reserved_tokens for sequence in self.sequences)


@dataclass(eq=False, slots=True)
class Sequence:
    """One choice: its tokens so far, and how many of them its slot holds."""

    group: Group
    index: int
    """The choice's index in the request's events."""
    tokens: list[int]
    """The prompt, then what was sampled."""
    num_prompt_tokens: int
    constraint: Constraint | None
    leader: Sequence | None = None
    """The choice that reads the prompt they share, until it has."""
    followers: list[Sequence] = field(default_factory=list)
    """The choices that will copy this one's slot when it has read the prompt."""
    slot: int = -1
    num_computed_tokens: int = 0
    finished: bool = False

    @property
    def num_reserved_tokens(self) -> int:
        """Tokens of the key/value budget that this choice may come to hold."""
        return self.num_prompt_tokens + self.group.request.max_tokens

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens beyond the prompt."""
        return len(self.tokens) - self.num_prompt_tokens


def group_of(request: GenerationRequest, constraint: Constraint | None) -> Group:
    """Lay out a request's choices: the first of every prompt leads, the others follow it."""
    group = Group(request)
    for prompt in request.prompts:
        leader = None
        for _ in range(request.num_choices):
            sequence = Sequence(
                group=group,
                index=len(group.sequences),
                tokens=list(prompt),
                num_prompt_tokens=len(prompt),
                constraint=constraint.copy() if constraint else None,
                leader=leader,
            )
            if leader is None:
                leader = sequence
            else:
                leader.followers.append(sequence)
            group.sequences.append(sequence)
    group.num_unfinished = len(group.sequences)
    return group
