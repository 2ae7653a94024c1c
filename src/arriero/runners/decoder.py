"""What runners of decoders do alike: all that concerns slots is their cache's business."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from arriero.compute import RunnerInfo


class Cache(Protocol):
    """The keys and values of all slots; the methods are those of `Runner`."""

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Give each destination slot its source's contents, all at once."""

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens."""

    def free(self, slot: int) -> None:
        """Forget a slot."""


_Cache = TypeVar("_Cache", bound=Cache)


class DecoderRunner(Generic[_Cache]):
    """The part of a decoder's `Runner` that computes nothing."""

    def __init__(self, info: RunnerInfo, cache: _Cache) -> None:
        self._info = info
        self._cache = cache

    @property
    def info(self) -> RunnerInfo:
        """What this runner can do."""
        return self._info

    def encode(self, slot: int, tokens: Sequence[int], adapter: int = 0) -> None:
        """A decoder has no encoder."""
        raise ValueError("the runner of a decoder was asked to encode")

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See `Runner.copy`."""
        self._cache.copy(pairs)

    def truncate(self, slot: int, length: int) -> None:
        """See `Runner.truncate`."""
        self._cache.truncate(slot, length)

    def free(self, slot: int) -> None:
        """See `Runner.free`."""
        self._cache.free(slot)
