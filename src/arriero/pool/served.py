"""A model that answers: everything that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from arriero.core import Engine
from arriero.models.card import ModelCard
from arriero.models.tokenizers.tokenizer import Tokenizer
from arriero.text.chat import ChatTemplate

_ROLES = {
    "query": ("query", "search_query", "retrieval.query", "s2p_query"),
    "document": ("document", "passage", "search_document", "retrieval.passage", "corpus"),
}
"""What models call their prompts for the two sides of a search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """What the vectors of a model are, and what goes before the texts that they are made of."""

    width: int = 0
    """Elements of each; 0: the model gives none."""
    normalise: bool = False
    """Whether they are still to be divided by their length."""
    activation: Literal["identity", "sigmoid"] = "identity"
    """What makes a score of the logit of a classification head."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Texts to put before an input, by name."""
    default_prompt: str | None = None
    """Name of the prompt for inputs that ask for none."""

    def before(self, role: Literal["query", "document", "passage"] | None = None) -> str:
        """What goes before a query or a document, or before a text that is neither."""
        prompt = self.prompt_for(role) if role else None
        if prompt is None:
            return self.prompts[self.default_prompt] if self.default_prompt else ""
        return prompt

    def prompt_for(self, role: Literal["query", "document", "passage"]) -> str | None:
        """The prompt that is meant for queries or for documents; None where the model makes no difference."""
        names = _ROLES["query" if role == "query" else "document"]
        return next((self.prompts[name] for name in names if name in self.prompts), None)


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
    vectors: Vectors = field(default_factory=Vectors)
    adapter: int = 0
    """Which of the engine's adapters answers; 0 is the base model."""
    parent: str | None = None
    """The name of the base model, for an adapter that is served beside it."""
    variants: tuple[ServedModel, ...] = ()
    """Further names on the same engine, each with an adapter of its own."""

    def build(self) -> None:
        """Make ready now what requests need of tokenizer and template; raises `ModelLoadError` if they are damaged."""
        for each in (self, *self.variants):
            each.tokenizer.build()
            if each.template:
                each.template.build()

    @property
    def name(self) -> str:
        """The id that the API shows and requests name."""
        return self.card.name
