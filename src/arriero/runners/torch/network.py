"""A model of transformers, called the way that packs of slots need it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from arriero.compute import Want
from arriero.runners.torch.pack import Pack

BANNED = -10_000.0
"""The logit of a token that the model's makers never want to see: as good as minus infinity, and yet a number."""


class Network:
    """Runs packs through a model, decoder or encoder-decoder."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.is_encoder_decoder: bool = bool(model.config.is_encoder_decoder)
        self._banned: list[int] = []
        self._device = model.get_input_embeddings().weight.device
        self._accepts = _parameters(model)
        self._decoder = model.get_decoder() if self.is_encoder_decoder else model
        self._encoded: Any = BaseModelOutput
        """What the model's encoder returns; those of mixtures of experts have fields that their decoders ask for."""
        self._positions = None if "position_ids" in self._accepts else _RowPositions(self._decoder)

    @property
    def has_states(self) -> bool:
        """Whether there is something below the head of a decoder that can be run for its hidden states."""
        return not self.is_encoder_decoder and self.model.base_model is not self.model

    @property
    def bytes_per_number(self) -> int:
        """Size of what keys and values are made of."""
        return int(self.model.dtype.itemsize)

    def ban(self, tokens: Sequence[int]) -> None:
        """Never answer these from now on."""
        self._banned = list(tokens)

    def logits(self, pack: Pack, tokens: Sequence[Sequence[int]], want: Want = Want.LAST) -> torch.Tensor:
        """Append as many tokens to every row; returns float32 [rows, wanted positions, vocab_size]."""
        more = {}
        if "logits_to_keep" in self._accepts:
            more["logits_to_keep"] = 0 if want is Want.ALL else 1
        logits = self._run(self.model, self._accepts, pack, tokens, more).logits
        if want is not Want.ALL:
            logits = logits[:, -1:] if want is Want.LAST else logits[:, :0]
        logits = logits.float()
        if self._banned:
            logits[..., self._banned] = BANNED
        return logits

    def states(self, pack: Pack, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Append as many tokens to every row of a decoder; returns their last hidden states, float32."""
        base = self.model.base_model
        return self._run(base, _parameters(base), pack, tokens, {}).last_hidden_state.float()

    def plain(self, tokens: Sequence[int], source: Sequence[int] = ()) -> torch.Tensor:
        """What the model itself makes of it all at once, float32 [tokens, vocab_size]."""
        ids = self._tensor([tokens])
        if self.is_encoder_decoder:
            outputs = self.model(input_ids=self._tensor([source]), decoder_input_ids=ids, use_cache=False)
        else:
            outputs = self.model(input_ids=ids, use_cache=False)
        return outputs.logits[0].float()

    def encode(self, slot: int, source: Sequence[int]) -> Pack:
        """A pack of one empty row that attends to this source."""
        outputs = self.model.get_encoder()(input_ids=self._tensor([source]))
        self._encoded = type(outputs)
        return Pack([slot], [0], source=outputs.last_hidden_state, source_lengths=[len(source)])

    def _run(
        self, module: Any, accepts: frozenset[str], pack: Pack, tokens: Sequence[Sequence[int]], more: dict[str, Any]
    ) -> Any:
        ids, num_new = self._tensor(tokens), len(tokens[0])
        mask = pack.mask(num_new).to(self._device)
        if self.is_encoder_decoder:
            arguments = self._arguments(pack, ids, mask)
        else:
            arguments = {"input_ids": ids, "attention_mask": mask, "past_key_values": pack.cache}
        if "position_ids" in accepts:
            arguments["position_ids"] = self._tensor([range(held, held + num_new) for held in pack.lengths])
        with self._positions.of(pack.lengths) if self._positions else _unchanged():
            outputs = module(**arguments, **more, use_cache=True)
        pack.lengths = [held + num_new for held in pack.lengths]
        pack.source = None
        return outputs

    def _arguments(self, pack: Pack, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        """Those of an encoder-decoder; once keys and values are made of a source it is there for its shape alone."""
        source = pack.source
        if source is None:
            source = (
                pack.cross.layers[0]
                .keys.new_zeros(1)
                .expand(len(pack.slots), pack.cross.width, self.model.config.hidden_size)
            )
        return {
            "encoder_outputs": self._encoded(last_hidden_state=source),
            "attention_mask": pack.source_mask().to(self._device),
            "decoder_input_ids": ids,
            "decoder_attention_mask": mask,
            "past_key_values": EncoderDecoderCache(pack.cache, pack.cross),
        }

    def _tensor(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor([list(row) for row in tokens], device=self._device)


def _parameters(module: Any) -> frozenset[str]:
    return frozenset(inspect.signature(module.forward).parameters)


@contextmanager
def _unchanged() -> Iterator[None]:
    yield


class _RowPositions:
    """Tells position embeddings how many tokens each row holds, where the model counts the cache's columns instead.

    BART and its relatives take no positions from outside: their embeddings are asked with the number of columns that
    the cache has, which is right for one row and wrong for rows of different lengths side by side.
    """

    def __init__(self, decoder: Any) -> None:
        self._lengths: Sequence[int] = ()
        for module in decoder.modules():
            if "past_key_values_length" in _parameters(module):
                module.register_forward_hook(self._embed, with_kwargs=True)

    @contextmanager
    def of(self, lengths: Sequence[int]) -> Iterator[None]:
        """For the time of one run of rows that hold so many tokens."""
        self._lengths = lengths if len(lengths) > 1 else ()
        try:
            yield
        finally:
            self._lengths = ()

    def _embed(self, module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
        """Replace embeddings [rows, 1, hidden_size] by those of each row's own position."""
        if not self._lengths:
            return output
        bound = inspect.signature(module.forward).bind(*arguments, **keywords)
        if "position_ids" in bound.arguments:
            bound.arguments["position_ids"] = None
        embedded = []
        for row, length in enumerate(self._lengths):
            given = {
                name: value[row : row + 1] if isinstance(value, torch.Tensor) else value
                for name, value in bound.arguments.items()
            }
            embedded.append(module.forward(**{**given, "past_key_values_length": length}).reshape(-1))
        return torch.stack(embedded)[:, None]
