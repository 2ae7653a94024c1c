"""Models with a cache of their own kind, or none: one row at a time.

State-space models, recurrent ones, hybrids and models with code of their own do not keep keys and values that rows
of different lengths could share. Here every slot keeps whatever object the model returned for it, and every row of a
step is a call of its own.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from arriero.compute import Row, RunnerInfo, Want

CACHES = ("past_key_values", "cache_params", "state", "mems")
"""What models call the object that they return, and want back for the next tokens."""


@dataclass(slots=True)
class Slot:
    """What has been read, and what the model remembers of it."""

    tokens: list[int] = field(default_factory=list)
    cache: Any = None
    """None: nothing, and the tokens must be read again."""


class Loner:
    """A decoder that reads one sequence at a time."""

    def __init__(self, model: Any, *, remembers: bool) -> None:
        """`remembers` False reads a sequence from its beginning for every token."""
        self._model = model
        self._remembers = remembers
        self._device = model.get_input_embeddings().weight.device

    @property
    def remembers(self) -> bool:
        """Whether earlier tokens are read only once."""
        return self._remembers

    def read(self, slot: Slot, tokens: Sequence[int], *, hidden: bool = False) -> torch.Tensor:
        """Append tokens to a slot; float32 [tokens, vocab_size], or [tokens, hidden_size] where `hidden`."""
        slot.tokens += tokens
        if slot.cache is None:
            return self._call(slot, slot.tokens, hidden)[-len(tokens) :]
        # Not all of them can take several tokens after others, but all can take one.
        return torch.cat([self._call(slot, [token], hidden) for token in tokens])

    def _call(self, slot: Slot, tokens: Sequence[int], hidden: bool) -> torch.Tensor:
        module = self._model.base_model if hidden else self._model
        given: dict[str, Any] = {"input_ids": torch.tensor([tokens], device=self._device)}
        accepts = inspect.signature(module.forward).parameters
        if "use_cache" in accepts:
            given["use_cache"] = self._remembers
        if slot.cache is not None:
            name, cache = slot.cache
            given[name] = cache
        outputs = module(**given)
        if self._remembers:
            slot.cache = next(((name, outputs[name]) for name in CACHES if outputs.get(name) is not None), None)
        return (outputs.last_hidden_state if hidden else outputs.logits)[0].float()


class AloneRunner:
    """A `Runner` that computes its rows one after the other."""

    def __init__(self, loner: Loner, info: RunnerInfo) -> None:
        self._loner = loner
        self._info = info
        self._slots: dict[int, Slot] = {}

    @property
    def info(self) -> RunnerInfo:
        """What this runner can do."""
        return self._info

    @torch.inference_mode()
    def step(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """See `Runner.step`."""
        wanted = []
        for row in rows:
            logits = self._loner.read(self._slots.setdefault(row.slot, Slot()), row.tokens)
            first = {Want.NOTHING: len(logits), Want.LAST: len(logits) - 1, Want.ALL: 0}[row.want]
            wanted.append(logits[first:].cpu().numpy())
        return np.concatenate(wanted)

    @torch.inference_mode()
    def states(self, row: Row) -> NDArray[np.float32]:
        """See `Runner.states`."""
        states = self._loner.read(self._slots.setdefault(row.slot, Slot()), row.tokens, hidden=True)
        return states.cpu().numpy()

    def encode(self, slot: int, tokens: Sequence[int], adapter: int = 0) -> None:
        """Not for decoders."""
        raise NotImplementedError("A decoder has no encoder.")

    @torch.inference_mode()
    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See `Runner.copy`."""
        self._slots |= {destination: copy.deepcopy(self._slots.get(source, Slot())) for source, destination in pairs}

    def truncate(self, slot: int, length: int) -> None:
        """See `Runner.truncate`; what is kept is read again, for such a model cannot forget the end alone."""
        held = self._slots.get(slot, Slot())
        if length < len(held.tokens):
            self._slots[slot] = Slot(held.tokens[:length])

    def free(self, slot: int) -> None:
        """See `Runner.free`."""
        self._slots.pop(slot, None)

    def close(self) -> None:
        """See `Runner.close`."""
        self._slots.clear()
        del self._loner
