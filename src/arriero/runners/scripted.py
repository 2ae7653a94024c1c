"""A runner that says what it is told: for tests, demonstrations and benchmarks of everything above it.

It is a real runner at the real seam. Its logits are flat but for the next token of the reply, so any way of
sampling follows the script, and it checks the protocol that faster runners take on trust.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from arriero.compute import Row, RunnerInfo, Want

Reply = Callable[[tuple[int, ...]], Sequence[int]]
"""From a prompt's tokens to the tokens to answer; the end token follows by itself."""

PEAK = 100.0
"""The logit of the scripted token, all others being 0: e**-100 leaves nothing to chance at temperature 1."""


def echo(prompt: tuple[int, ...]) -> Sequence[int]:
    """Answer with the prompt's own tokens."""
    return prompt


@dataclass(slots=True)
class _Slot:
    tokens: list[int] = field(default_factory=list)
    num_prompt_tokens: int | None = None
    """Known once logits have been wanted, see `ScriptedRunner`."""
    reply: Sequence[int] = ()
    source: tuple[int, ...] = ()


class ScriptedRunner:
    """Replies from a script, deterministic and instant; raises `ValueError` when the protocol is broken.

    A prompt is what a slot holds up to the first position at which the last logits of a row are wanted; from there on
    the reply's tokens are predicted place by place, whatever was appended in fact, then `end_token_id` for ever. A row
    of which all logits are wanted is read as part of a prompt, which then ends with it; each of its positions predicts
    what follows a prompt that ends there.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        num_slots: int,
        context: int,
        end_token_id: int,
        reply: Reply = echo,
        pace: float = 0.0,
        fail_after: int | None = None,
        hidden_size: int = 16,
        source_context: int = 0,
        decoder_start: tuple[int, ...] = (),
        num_guesses: int = 0,
    ) -> None:
        """`pace` is the seconds each step takes, reading a row for its states being a step; after `fail_after` steps
        every further one raises `RuntimeError`. With a `source_context` and a `decoder_start` it is an encoder-decoder,
        which replies to what was encoded and has no states.
        """
        self._info = RunnerInfo(
            num_slots=num_slots,
            context=context,
            vocab_size=vocab_size,
            bytes_per_token=8,
            invariant=True,
            hidden_size=0 if source_context else hidden_size,
            source_context=source_context,
            decoder_start=decoder_start,
            num_guesses=num_guesses,
        )
        self._end_token_id = end_token_id
        self._reply = reply
        self._pace = pace
        self._steps_left = fail_after
        self._slots = [_Slot() for _ in range(num_slots)]
        self._closed = False

    @property
    def info(self) -> RunnerInfo:
        """What it can do; constant."""
        return self._info

    def step(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Append the rows' tokens; the logits are float32 [wanted positions, vocab_size]."""
        self._check_step(rows)
        self._take_time()
        predicted: list[int] = []
        for row in rows:
            slot = self._slots[row.slot]
            slot.tokens.extend(row.tokens)
            if row.want is Want.LAST:
                predicted.append(self._next(slot, len(slot.tokens)))
            elif row.want is Want.ALL:
                for length in range(row.position + 1, len(slot.tokens) + 1):
                    if not row.guessed:
                        slot.num_prompt_tokens = None
                    predicted.append(self._next(slot, length))
        logits = np.zeros((len(predicted), self._info.vocab_size), dtype=np.float32)
        logits[np.arange(len(predicted)), predicted] = PEAK
        return logits

    def states(self, row: Row) -> NDArray[np.float32]:
        """Append the row's tokens; each state tells its token, and a little of the token's position."""
        self._check_step([row])
        self._take_time()
        self._slots[row.slot].tokens.extend(row.tokens)
        tokens = np.asarray(row.tokens)[:, None]
        positions = np.arange(row.position, row.position + len(row.tokens))[:, None]
        frequencies = np.sqrt(np.arange(1, self._info.hidden_size + 1))
        return np.sin((tokens + 1 + positions / self._info.context) * frequencies).astype(np.float32)

    def encode(self, slot: int, tokens: Sequence[int], adapter: int = 0) -> None:
        """Let a slot's prompt be these tokens, whatever is appended to it; `adapter` has no effect on a script."""
        if not self._info.source_context:
            raise ValueError("the runner of a decoder was asked to encode")
        held = self._slot(slot)
        if held.tokens or held.source:
            raise ValueError(f"slot {slot} is not empty")
        if not 0 < len(tokens) <= self._info.source_context:
            raise ValueError(f"slot {slot}: a source of {len(tokens)} tokens of {self._info.source_context}")
        held.source = tuple(tokens)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy slots, all at once."""
        destinations = [destination for _, destination in pairs]
        if len(set(destinations)) < len(destinations):
            raise ValueError(f"two copies into one slot: {pairs}")
        sources = [self._slot(source) for source, _ in pairs]
        copies = [_Slot(list(slot.tokens), slot.num_prompt_tokens, slot.reply, slot.source) for slot in sources]
        for destination, copied in zip(destinations, copies, strict=True):
            self._slot(destination)
            self._slots[destination] = copied

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens; a prompt that is cut has not ended yet."""
        held = self._slot(slot)
        if not 0 <= length <= len(held.tokens):
            raise ValueError(f"slot {slot} holds {len(held.tokens)} tokens, cannot be cut to {length}")
        del held.tokens[length:]
        if held.num_prompt_tokens is not None and length < held.num_prompt_tokens:
            held.num_prompt_tokens = None

    def free(self, slot: int) -> None:
        """Forget a slot's contents."""
        self._slot(slot)
        self._slots[slot] = _Slot()

    def close(self) -> None:
        """Any further call is a breach of protocol."""
        if self._closed:
            raise ValueError("closed twice")
        self._closed = True

    def _take_time(self) -> None:
        if self._pace:
            time.sleep(self._pace)
        if self._steps_left is not None:
            if self._steps_left == 0:
                raise RuntimeError("The script ends here: fail_after steps are done.")
            self._steps_left -= 1

    def _next(self, slot: _Slot, length: int) -> int:
        """The token that follows the slot's first `length` tokens."""
        if slot.num_prompt_tokens is None:
            slot.num_prompt_tokens = length
            slot.reply = self._reply(slot.source or tuple(slot.tokens[:length]))
        place = length - slot.num_prompt_tokens
        return slot.reply[place] if place < len(slot.reply) else self._end_token_id

    def _check_step(self, rows: Sequence[Row]) -> None:
        if not rows:
            raise ValueError("a step without rows")
        if len({row.slot for row in rows}) < len(rows):
            raise ValueError("two rows of one slot in a step")
        for row in rows:
            held = len(self._slot(row.slot).tokens)
            if self._info.source_context and not self._slots[row.slot].source:
                raise ValueError(f"slot {row.slot} has no source to answer")
            if row.position != held:
                raise ValueError(f"slot {row.slot} holds {held} tokens, the row says {row.position}")
            if not row.tokens or held + len(row.tokens) > self._info.context:
                raise ValueError(f"slot {row.slot}: {len(row.tokens)} tokens after {held} of {self._info.context}")
            if row.guessed and (len(row.tokens) > 1 + self._info.num_guesses or row.want is not Want.ALL):
                raise ValueError(f"slot {row.slot}: {len(row.tokens) - 1} guesses of {self._info.num_guesses}")
            if row.guessed and held + 1 + self._info.num_guesses > self._info.context:
                raise ValueError(f"slot {row.slot}: no room for guesses after {held} of {self._info.context}")
        tokens = [token for row in rows for token in row.tokens]
        if min(tokens) < 0 or max(tokens) >= self._info.vocab_size:
            raise ValueError(f"a token outside the vocabulary of {self._info.vocab_size}")

    def _slot(self, slot: int) -> _Slot:
        if self._closed:
            raise ValueError("used after close")
        if not 0 <= slot < len(self._slots):
            raise ValueError(f"no slot {slot}, there are {len(self._slots)}")
        return self._slots[slot]
