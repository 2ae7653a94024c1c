"""The seam below the engines: what computes one step, and what it is given.

An engine holds queues and no tensors; what stands behind these protocols holds tensors and no queues.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # it takes long to import, and commands that compute nothing import this module too
    import numpy as np
    from numpy.typing import NDArray


class Want(enum.Enum):
    """Which positions of a row's tokens get logits."""

    NOTHING = 0
    LAST = 1
    ALL = 2


@dataclass(slots=True)
class Row:
    """One slot's share of a step: `tokens` are appended to the `position` tokens that the slot already holds.

    Nobody changes one. It is not frozen because there are so many, see `core.Token`.
    """

    slot: int
    tokens: Sequence[int]
    position: int
    want: Want = Want.LAST
    adapter: int = 0
    """Constant while a slot is in use."""
    guessed: bool = False
    """Whether all tokens but the first are guesses, at most `RunnerInfo.num_guesses`: each is computed bit for bit as
    if it had come in a step of its own. Logits of all of them are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerInfo:
    """What a runner can do. The scheduler plans by this and by nothing else."""

    num_slots: int
    context: int
    """Tokens that one slot can hold."""
    vocab_size: int
    bytes_per_token: int
    """Memory that one token's keys and values take, over all layers."""
    invariant: bool
    """True when a row's logits do not depend on which other rows share its step or how its prompt was cut."""
    alike: bool = False
    """True when a token leaves the same bits in its slot whether it came alone, as sampled ones do, or in a prompt."""
    min_prompt_chunk: int = 1
    """Prompts of at least this many tokens must be cut into chunks of at least this many, for `invariant` to hold."""
    chunked_prefill: bool = True
    """Takes several tokens in a row that already holds some."""
    truncation: bool = True
    """Can forget the end of what a slot holds; else `truncate` is never called."""
    hidden_size: int = 0
    """Width of the hidden states that `states` returns; 0: it returns none."""
    num_adapters: int = 0
    """Adapters besides the base model: rows may have 0 to this as their `adapter`."""
    vocab_sizes: tuple[int, ...] = ()
    """Tokens that the base and each adapter know, where they differ; `vocab_size` is then the largest."""
    source_context: int = 0
    """Tokens that an encoder-decoder's input may have; 0: a decoder, which has no `encode`."""
    num_guesses: int = 0
    """Further tokens that a row may have as guesses. Its slot needs room for all of them, also where it has fewer."""
    decoder_start: tuple[int, ...] = ()
    """The tokens with which every answer of an encoder-decoder begins, before the first sampled one."""


class Runner(Protocol):
    """Computes one step. Synchronous, called from one thread, holds tensors and no queues."""

    @property
    def info(self) -> RunnerInfo:
        """What it can do; constant."""
        ...

    def step(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Append every row's tokens to its slot and return the logits that were wanted.

        Rows have distinct slots; `row.position` equals the number of tokens the slot holds.
        Returns float32 [number of wanted positions, vocab_size], in the order of `rows`, negative infinity for
        tokens that a row's adapter does not know; the array is valid until the next call.
        """
        ...

    def states(self, row: Row) -> NDArray[np.float32]:
        """Append one row's tokens to its slot and return the last hidden states of them all, after the final norm.

        Returns float32 [tokens, hidden_size]. Only where `info.hidden_size` is not 0; `row.want` has no effect.
        """
        ...

    def encode(self, slot: int, tokens: Sequence[int], adapter: int = 0) -> None:
        """Let an empty slot of an encoder-decoder hold what its encoder makes of an input; `copy` copies that too.

        Only where `info.source_context` is not 0. The slot's positions count the decoder's tokens.
        """
        ...

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Give slot `destination` the contents of slot `source` for every (source, destination), all at once:
        every source is read as it was before the call, so slots may be permuted."""
        ...

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens of a slot."""
        ...

    def free(self, slot: int) -> None:
        """Forget a slot's contents; its memory may go back to the system."""
        ...

    def close(self) -> None:
        """Release everything; the runner is not used again."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderInfo:
    """What an encoder can do."""

    context: int
    """Tokens that one input can have."""
    vocab_size: int
    width: int
    """Elements of each vector that it returns."""
    invariant: bool
    """True when a vector does not depend on which other inputs share its batch."""


class Encoder(Protocol):
    """Turns whole inputs into one vector each. Synchronous, called from one thread, holds tensors and no queues."""

    @property
    def info(self) -> EncoderInfo:
        """What it can do; constant."""
        ...

    def encode(self, inputs: Sequence[Sequence[int]], first_segments: Sequence[int]) -> NDArray[np.float32]:
        """One vector an input, float32 [inputs, width]; fastest where the inputs are about equally long.

        `first_segments` as in `EncodingRequest`, one an input.
        """
        ...

    def close(self) -> None:
        """Release everything; the encoder is not used again."""
        ...
