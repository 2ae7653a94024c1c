"""Finds out, by trying, how a model's rows can be computed, rather than trusting a list of architectures."""

from __future__ import annotations

import logging
from typing import TypedDict

import torch

from arriero.compute import Row, RunnerInfo, Want
from arriero.errors import UnsupportedModel
from arriero.runners.torch.alone import Loner, Slot
from arriero.runners.torch.network import Network
from arriero.runners.torch.runner import TorchRunner

logger = logging.getLogger(__name__)

EXACT = 1e-3
"""How far float32 logits may be from the model's own, as a share of the largest."""
ROUNDED = 0.1
"""The same where numbers are rounded: half precision, int8."""
NUM_SLOTS = 3
_FIRST, _SECOND, _NEXT = 7, 4, 2


class Findings(TypedDict):
    """What a trial found out, as `RunnerInfo` calls it."""

    vocab_size: int
    hidden_size: int
    bytes_per_token: int


@torch.inference_mode()
def reads_packs(network: Network, tolerance: float, *, together: bool) -> Findings | None:
    """Whether sequences that are read in pieces give what the model gives for each at once; None if not.

    With `together`, rows of different lengths share a call.
    """
    try:
        return _reads_packs(network, tolerance, together)
    except Exception as error:  # models fail in their own ways; whatever it is, this is not how to call this one
        logger.debug("The model's rows cannot be computed as packs: %s", error, exc_info=error)
        return None


def _reads_packs(network: Network, tolerance: float, together: bool) -> Findings | None:
    first, second = _tokens(network, _FIRST, 3), _tokens(network, _SECOND, 8)
    sources = [_tokens(network, length, 5) if network.is_encoder_decoder else [] for length in (6, 3)]
    expected = [network.plain(tokens, source) for tokens, source in zip((first, second), sources, strict=True)]
    info = RunnerInfo(num_slots=NUM_SLOTS, context=16, vocab_size=1, bytes_per_token=1, invariant=False)
    runner = TorchRunner(network, info, together=together)
    for slot, source in enumerate(sources):
        if source:
            runner.encode(slot, source)
    cut = _FIRST - _NEXT - 2
    runner.step([Row(0, first[:cut], 0, Want.NOTHING)])
    runner.step([Row(0, first[cut:-_NEXT], cut, Want.NOTHING), Row(1, second[:-_NEXT], 0, Want.NOTHING)])
    for back in range(_NEXT, 0, -1):
        rows = [Row(slot, [tokens[-back]], len(tokens) - back) for slot, tokens in enumerate((first, second))]
        actual = torch.from_numpy(runner.step(rows).copy())
        wanted = torch.stack([logits[-back] for logits in expected]).cpu()
        if not torch.isfinite(actual).all() or (actual - wanted).abs().max() > tolerance * wanted.abs().max():
            return None
    pack, _ = runner._places[0]
    numbers = sum(layer.keys[0, :, 0].numel() + layer.values[0, :, 0].numel() for layer in pack.cache.layers)
    hidden = runner.states(Row(2, first, 0)).shape[1] if network.has_states else 0
    return {
        "vocab_size": wanted.shape[1],
        "hidden_size": hidden,
        "bytes_per_token": numbers * network.bytes_per_number,
    }


@torch.inference_mode()
def reads_alone(network: Network, tolerance: float) -> tuple[Loner, Findings]:
    """How one row at a time is read: with the model's own cache, or from the beginning where it has none.

    Raises:
        UnsupportedModel: the model cannot even be read like that.
    """
    tokens = _tokens(network, _FIRST, 3)
    try:
        wanted = network.plain(tokens)[-1]
        reader = Loner(network.model, remembers=False)
        hidden = reader.read(Slot(), tokens, hidden=True).shape[1] if network.has_states else 0
    except Exception as error:  # as above
        raise UnsupportedModel(f"The model cannot be run: {error}") from error
    findings: Findings = {"vocab_size": len(wanted), "hidden_size": hidden, "bytes_per_token": 1}
    loner = Loner(network.model, remembers=True)
    try:
        slot = Slot()
        loner.read(slot, tokens[:-_NEXT])
        actual = loner.read(slot, tokens[-_NEXT:])[-1]
        if slot.cache is not None and (actual - wanted).abs().max() <= tolerance * wanted.abs().max():
            return loner, findings
    except Exception as error:  # as above
        logger.debug("The model's own cache cannot be used: %s", error, exc_info=error)
    return Loner(network.model, remembers=False), findings


def _tokens(network: Network, count: int, stride: int) -> list[int]:
    """Some tokens of the vocabulary; the first few are often special."""
    size = network.model.get_input_embeddings().weight.shape[0]
    return [(10 + stride * place) % size for place in range(count)]
