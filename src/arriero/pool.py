"""Which model answers to a name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from arriero.core import Engine
from arriero.errors import UnknownModel
from arriero.models.card import ModelCard
from arriero.models.tokenizer import Tokenizer
from arriero.text.chat import ChatTemplate


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """All that answering for one model name takes. Tokenizer and template belong to the name, not to the engine."""

    card: ModelCard
    created: int
    """Seconds since the epoch."""
    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate | None
    """None for a model that has no notion of a conversation."""
    fingerprint: str
    """Changes when the same request with the same seed may be answered differently."""

    @property
    def name(self) -> str:
        """The id that the API shows and requests name."""
        return self.card.name


class Pool:
    """The models that this server has."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = {model.name: model for model in models}

    def get(self, name: str) -> ServedModel:
        """The model of that name; raises `UnknownModel`."""
        try:
            return self._models[name]
        except KeyError:
            raise UnknownModel(name) from None

    def list(self) -> list[ServedModel]:
        """All models."""
        return list(self._models.values())
