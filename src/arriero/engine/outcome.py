"""What the results of a step mean for its sequences: new tokens, ends, choices that part, beams that move.

Who else wants a slot, and who waits, makes no difference to that: nothing here knows of it, and the scheduler carries
out what an `Outcome` says. Sequences that were aborted while the step ran are passed over.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from arriero.core import Encoded, Event, Finished, FinishReason, Logprob, PromptScored, Token
from arriero.engine.beams import Candidate
from arriero.engine.encodings import Encoding, take
from arriero.engine.guesses import count_right
from arriero.engine.sequence import Group, Sequence
from arriero.engine.step import Results, Step

News = tuple[Group, Event] | tuple[Encoding, Encoded]


@dataclass(slots=True)
class Outcome:
    """What happened, and what the scheduler is to do about it."""

    news: list[News] = field(default_factory=list)
    """For whoever asked, in order."""
    num_generated_tokens: int = 0
    ended: list[Sequence] = field(default_factory=list)
    """Their slots are wanted no more; they are marked as finished."""
    encoded: list[Encoding] = field(default_factory=list)
    """Complete, and wanting no slot any more."""
    joined: list[Sequence] = field(default_factory=list)
    """Followers that run from now on, as if they had read the prompt themselves."""
    copies: list[tuple[int, Sequence]] = field(default_factory=list)
    """(source slot, sequence that goes on from its contents), before anything else is done to either."""
    guessed: Sequence | None = None
    """Its slot holds more than its tokens: guesses that were wrong."""

    def _take_scores(self, sequence: Sequence, scores: list[Logprob]) -> None:
        """Note how probable some of a prompt's tokens are, and tell when all of it is read."""
        assert sequence.scores is not None
        sequence.scores += scores
        if sequence.num_computed_tokens == sequence.num_prompt_tokens:
            self.news.append((sequence.group, PromptScored(sequence.prompt, tuple(sequence.scores))))

    def _take_guesses(self, sequence: Sequence, guesses: list[int], tokens: list[int]) -> int:
        """How many of the sampled tokens count: those that were guessed right, and the one after them."""
        num_right = count_right(guesses, tokens)
        sequence.num_computed_tokens += num_right
        if sequence.guesses:
            sequence.guesses.learn(num_right)
        self.guessed = sequence
        return num_right + 1

    def _take(self, sequence: Sequence, token: int, logprob: Logprob | None) -> None:
        """Append a sampled token to its sequence, and end the sequence if this was its last."""
        group, request = sequence.group, sequence.group.request
        self.num_generated_tokens += 1
        sequence.tokens.append(token)
        reason: FinishReason | None = None
        taken, ending = Token(sequence.index, token, logprob), None
        if token in request.end_token_ids:
            reason, ending = "stop", taken
        else:
            self.news.append((group, taken))
            if sequence.constraint and sequence.constraint.accept(token):
                reason = "stop"
            elif sequence.num_sampled_tokens == request.max_tokens:
                reason = "length"
        if reason:
            cached = group.family(sequence.prompt)[0].num_cached_tokens
            num_tokens = sequence.num_sampled_tokens
            self.news.append((group, Finished(sequence.index, reason, num_tokens, cached, ending, group.queue_seconds)))
            self._end(sequence)
        if sequence.leader:
            self._part(sequence, sequence.leader)

    def _part(self, sequence: Sequence, leader: Sequence) -> None:
        """Let a follower go its own way after its first token: from a copy of its leader's slot."""
        if sequence.finished:
            sequence.leader = None
        else:
            self._join(sequence)
            self.copies.append((leader.slot, sequence))

    def _take_candidates(self, first: Sequence, candidates: list[Candidate]) -> None:
        """Let a beam search go on: its sequences become what their places have become."""
        search, family = first.search, first.group.family(first.prompt)
        assert search
        for sequence in family:
            if sequence.leader:
                self._join(sequence)
        copies = search.take(candidates)
        if search.decided:
            for event in search.events(first.num_cached_tokens, first.group.queue_seconds):
                self.news.append((first.group, event))
                self.num_generated_tokens += event.num_tokens if isinstance(event, Finished) else 0
            for sequence in family:
                self._end(sequence)
            return
        for source, destination in copies:
            family[destination].num_computed_tokens = family[source].num_computed_tokens
            self.copies.append((family[source].slot, family[destination]))
        for beam in search.beams:
            family[beam.place].tokens = beam.tokens

    def _finish_unanswered(self, sequence: Sequence) -> None:
        """End all choices of a prompt that is read, where no answer is asked for."""
        if sequence.num_computed_tokens < sequence.num_prompt_tokens:
            return
        num_choices, waited = sequence.group.request.num_choices, sequence.group.queue_seconds
        for index in range(sequence.prompt * num_choices, (sequence.prompt + 1) * num_choices):
            self.news.append((sequence.group, Finished(index, "length", 0, sequence.num_cached_tokens, None, waited)))
        for member in sequence.group.family(sequence.prompt):
            self._end(member)

    def _join(self, sequence: Sequence) -> None:
        sequence.leader = None
        sequence.num_computed_tokens = sequence.num_prompt_tokens
        self.joined.append(sequence)

    def _end(self, sequence: Sequence) -> None:
        sequence.finished = True
        self.ended.append(sequence)


def outcome_of(step: Step, results: Results) -> Outcome:
    """Let the sequences of a step take in what came of it; what its rows held counts as computed already."""
    outcome = Outcome()
    for scoring, scores in zip(step.scorings, results.scores, strict=True):
        if not scoring.sequence.finished:
            outcome._take_scores(scoring.sequence, scores)
    drawing = step.drawing
    if step.guesses:
        drawing = drawing[: outcome._take_guesses(drawing[0], step.guesses, results.tokens)]
    for place, (sequence, token) in enumerate(zip(drawing, results.tokens, strict=not step.guesses)):
        if not sequence.finished:
            outcome._take(sequence, token, results.logprobs.get(place))
    for first, candidates in zip(step.expansions, results.candidates, strict=True):
        if not first.finished:
            outcome._take_candidates(first, candidates)
    for sequence in step.sequences:
        if not sequence.group.request.max_tokens and not sequence.finished:
            outcome._finish_unanswered(sequence)
    outcome.encoded = [each for each in take(step.readings, results.sums) if not each.finished]
    outcome.news += [(encoding, Encoded(encoding.vectors, encoding.queue_seconds)) for encoding in outcome.encoded]
    return outcome
