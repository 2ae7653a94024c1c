"""Greedy sequences straight on a runner: each alone, and many at once while everything around them changes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from arriero.compute import Row, Runner, Want

SMALL_CHUNKS = (1, 2, 3, 4, 5, 6, 7)
LARGE_CHUNKS = (64, 256, 1 << 30)


@dataclass(frozen=True, slots=True)
class Work:
    """A prompt, and how many tokens to continue it by."""

    prompt: tuple[int, ...]
    num_tokens: int


@dataclass(slots=True)
class Trace:
    """What a sequence said, and the digest of the logits behind every token."""

    tokens: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)

    def take(self, logits: NDArray[np.float32]) -> None:
        self.tokens.append(int(logits.argmax()))
        self.digests.append(hashlib.blake2b(logits.tobytes(), digest_size=8).digest())


@dataclass(slots=True)
class Counts:
    """What happened in a crowd, and how much of it was as it is alone."""

    sequences: int = 0
    tokens: int = 0
    steps: int = 0
    aborts: int = 0
    moves: int = 0
    rollbacks: int = 0
    other_tokens: int = 0
    """Sequences that said something else than alone."""
    other_logits: int = 0
    """Sequences with the same tokens or not, but other logits in some bit."""

    def __str__(self) -> str:
        return ", ".join(f"{getattr(self, each.name)} {each.name.replace('_', ' ')}" for each in fields(self))


def alone(runner: Runner, work: Work) -> Trace:
    """The whole prompt in one step, then one token a step; nothing else in the runner."""
    trace = Trace()
    tokens: Sequence[int] = work.prompt
    position = 0
    while len(trace.tokens) < work.num_tokens:
        trace.take(runner.step([Row(0, tokens, position)])[0])
        position += len(tokens)
        tokens = trace.tokens[-1:]
    runner.free(0)
    return trace


@dataclass(slots=True)
class _Live:
    """A sequence in the crowd."""

    index: int
    work: Work
    slot: int
    abort_at: int
    """Tokens in the slot after which it is given up; more than it ever has when it is not."""
    position: int = 0
    trace: Trace = field(default_factory=Trace)

    @property
    def tokens(self) -> list[int]:
        return [*self.work.prompt, *self.trace.tokens]


class Crowd:
    """Runs sequences at most `batch` at a time; what happens when is drawn from the seed.

    In any step sequences may join, in any free slot; be given up and start again later; sit out; have their
    prompt read in pieces of any size; move to another slot, or swap slots; forget their last tokens and read
    them again. Rows are in any order.
    """

    def __init__(self, runner: Runner, works: Sequence[Work], expected: Sequence[Trace], batch: int, seed: int) -> None:
        self._runner = runner
        self._works = works
        self._expected = expected
        self._batch = batch
        self._dice = random.Random(seed)
        self._waiting = list(range(len(works)))
        self._given_up: set[int] = set()
        self._free = list(range(runner.info.num_slots))
        self._live: list[_Live] = []
        self.counts = Counts()

    def run(self) -> Counts:
        """Until every sequence has come to its end once, and was compared with itself alone."""
        self._dice.shuffle(self._waiting)
        while self._waiting or self._live:
            self._join()
            self._disturb()
            self._step()
        return self.counts

    def _join(self) -> None:
        while self._waiting and len(self._live) < self._batch and (not self._live or self._dice.random() < 0.7):
            index = self._waiting.pop()
            work = self._works[index]
            length = len(work.prompt) + work.num_tokens
            gives_up = index not in self._given_up and self._dice.random() < 0.2
            abort_at = self._dice.randrange(1, length) if gives_up else length + 1
            self._live.append(_Live(index, work, self._take_slot(), abort_at))

    def _take_slot(self) -> int:
        return self._free.pop(self._dice.randrange(len(self._free)))

    def _release(self, live: _Live) -> None:
        self._runner.free(live.slot)
        self._free.append(live.slot)

    def _disturb(self) -> None:
        """Now and then move a sequence, swap two, or take one back."""
        holding = [live for live in self._live if live.position]
        if not holding:
            return
        live = self._dice.choice(holding)
        if self._free and self._dice.random() < 0.1:
            slot = self._take_slot()
            self._runner.copy([(live.slot, slot)])
            self._release(live)
            live.slot = slot
            self.counts.moves += 1
        if len(holding) > 1 and self._dice.random() < 0.05:
            one, other = self._dice.sample(holding, 2)
            self._runner.copy([(one.slot, other.slot), (other.slot, one.slot)])
            one.slot, other.slot = other.slot, one.slot
            self.counts.moves += 1
        if live.position > 1 and self._dice.random() < 0.05:
            self._take_back(live, self._dice.randrange(1, min(live.position, 12)))

    def _take_back(self, live: _Live, count: int) -> None:
        """Forget the last tokens, and more if that would leave too little of the prompt to be read again."""
        position = live.position - count
        least = self._runner.info.min_prompt_chunk
        if 0 < len(live.work.prompt) - position < least:
            position = max(len(live.work.prompt) - least, 0)
        live.position = position
        self._runner.truncate(live.slot, position)
        self.counts.rollbacks += 1

    def _step(self) -> None:
        present = [live for live in self._live if self._dice.random() < 0.95] or self._live[:1]
        self._dice.shuffle(present)
        rows = [self._row(live) for live in present]
        logits = iter(self._runner.step(rows))
        self.counts.steps += 1
        for live, row in zip(present, rows, strict=True):
            live.position += len(row.tokens)
            if row.want is Want.LAST:
                live.trace.take(next(logits))
            if len(live.trace.tokens) == live.work.num_tokens:
                self._finish(live)
            elif live.position >= live.abort_at:
                self._give_up(live)
        assert next(logits, None) is None

    def _row(self, live: _Live) -> Row:
        """The next piece of the prompt, or the next token after it; the last there is asks for a token more."""
        tokens = live.tokens
        piece = tokens[live.position : live.position + self._piece(len(live.work.prompt) - live.position)]
        complete = live.position + len(piece) == len(tokens)
        return Row(live.slot, piece, live.position, Want.LAST if complete else Want.NOTHING)

    def _piece(self, unread: int) -> int:
        """How much to read at once where `unread` tokens of the prompt are left: what the runner allows."""
        least = self._runner.info.min_prompt_chunk
        if unread <= least:
            return max(unread, 1)
        size = max(least, self._dice.choice(SMALL_CHUNKS if self._dice.random() < 0.5 else LARGE_CHUNKS))
        return size if unread - size >= least else unread

    def _finish(self, live: _Live) -> None:
        self.counts.sequences += 1
        self._compare(live)
        self._live.remove(live)
        self._release(live)

    def _give_up(self, live: _Live) -> None:
        self.counts.aborts += 1
        self._compare(live)
        self._live.remove(live)
        self._release(live)
        self._given_up.add(live.index)
        self._waiting.insert(0, live.index)

    def _compare(self, live: _Live) -> None:
        said, expected = live.trace, self._expected[live.index]
        count = len(said.tokens)
        self.counts.tokens += count
        self.counts.other_tokens += said.tokens != expected.tokens[:count]
        self.counts.other_logits += said.digests != expected.digests[:count]
