"""Adapters over one base model: which are asked for, what their tokens mean, and the names that they answer to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from arriero.app.pickles import without_pickles
from arriero.app.served import fingerprint_of, vocabulary_digest
from arriero.core import Constraint, ConstraintFactory, GenerationRequest
from arriero.errors import ConfigError, ModelLoadError
from arriero.models.architecture import Checkpoint
from arriero.models.card import decoder_tasks
from arriero.models.sources.download import Progress
from arriero.models.sources.resolve import resolve
from arriero.models.tokenizers.metadata import read_text_metadata
from arriero.models.tokenizers.slow_tokenizers import has_slow_tokenizer
from arriero.models.tokenizers.tokenizer import Tokenizer, read_tokenizer
from arriero.pool import ServedModel
from arriero.text.chat import ChatTemplate
from arriero.text.stop import stop_constraints

if TYPE_CHECKING:
    from arriero.config import Settings
    from arriero.models.adapters.lora import Adapter

logger = logging.getLogger(__name__)

_PADDINGS = (8, 16, 32, 64, 128)
"""Tables of embeddings are often filled up to a multiple of one of these."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the tokens of a model mean."""

    path: Path
    """Where the tokenizer is from."""
    tokenizer: Tokenizer
    template: str | None

    @property
    def facts(self) -> tuple[str, str]:
        """What tells it from others, for a fingerprint."""
        return vocabulary_digest(self.path), self.template or ""

    @property
    def chat(self) -> ChatTemplate | None:
        """How a conversation becomes a text, if it does."""
        return None if self.template is None else ChatTemplate(self.template, self.tokenizer)


def read_vocabulary(path: Path, base: Path) -> Vocabulary:
    """The tokenizer at `path`; what ends an answer, and the chat template, are the base's where it does not say."""
    tokenizer, template = read_tokenizer(path), read_text_metadata(path).chat_template
    if path != base:
        metadata = read_text_metadata(base)
        template = metadata.chat_template if template is None else template
        tokenizer.end_token_ids = tokenizer.end_token_ids or metadata.end_token_ids
    return Vocabulary(path, tokenizer, template)


def has_tokenizer(path: Path) -> bool:
    """Whether a directory brings a tokenizer; a GGUF file always does."""
    return path.is_file() or (path / "tokenizer.json").is_file() or has_slow_tokenizer(path)


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """An adapter, and the name that answers with it; None for the one that is served as the model itself."""

    name: str | None
    source: str
    adapter: Adapter


def open_adapters(settings: Settings, checkpoint: Checkpoint, on_download: Progress | None) -> list[NamedAdapter]:
    """The adapters that the settings ask for, checked against their base; the one of `--lora-model` comes first.

    Raises `ModelLoadError` for one that is not there, damaged, made for another base or not supported.
    """
    if not (settings.lora or settings.lora_model):
        return []
    from arriero.models.adapters.lora import Adapter  # which takes long to import

    asked = [(None, settings.lora_model)] if settings.lora_model else []
    named = []
    for name, place in [*asked, *settings.lora.items()]:
        found = resolve(place, settings.cache, on_download)
        path = without_pickles(found.path, settings.cache)
        named.append(NamedAdapter(name, str(found.path), Adapter(path, checkpoint)))
    return named


def main_tokenizer(settings: Settings, base: Path, adapter: Path | None) -> Path:
    """Where the model's tokenizer is: at --tokenizer-path, else with its adapter, else with its base."""
    return settings.tokenizer_path or (adapter if adapter is not None and has_tokenizer(adapter) else base)


def read_vocabularies(settings: Settings, base: Path, adapters: Sequence[NamedAdapter], size: int) -> list[Vocabulary]:
    """What tokens mean to the base, which has `size` of them, and to each of its adapters.

    The tokenizer of the model itself is that of --tokenizer-path, else of its adapter's directory, else its base's. Any
    other adapter brings its own or has the base's. Raises `ModelLoadError` where tokenizer and model do not belong
    together.
    """
    main = settings.tokenizer_path
    shared = base if has_tokenizer(base) or main is None else main
    places = [shared if main is None or settings.lora_model else main]
    for each in adapters:
        own = each.adapter.path if has_tokenizer(each.adapter.path) else shared
        places.append(own if each.name or main is None else main)
    read = {place: read_vocabulary(place, base) for place in dict.fromkeys(places)}
    if adapters or main:
        for place, adapter in zip(places, [None, *(each.adapter for each in adapters)], strict=True):
            if adapter or not settings.lora_model:
                _check_sizes(read[place], adapter, size)
    return [read[place] for place in places]


def _check_sizes(vocabulary: Vocabulary, adapter: Adapter | None, base_size: int) -> None:
    """Raise `ModelLoadError` that names both sizes unless tokenizer and model speak of the same tokens.

    A model's table may be filled up; beyond that an adapter that resized it knows exactly the tokenizer's tokens.
    """
    known = adapter.config.vocab_size if adapter else base_size
    size = vocabulary.tokenizer.vocab_size
    padded = {-(-size // multiple) * multiple for multiple in _PADDINGS}
    if size > known or (known != base_size and known != size and known not in padded):
        place = f" with the adapter {adapter.path} (the base model alone: {base_size})" if adapter else ""
        raise ModelLoadError(
            f"{vocabulary.path}: the tokenizer has {size} tokens, the model{place} {known}. "
            "Give the tokenizer that belongs to it with --tokenizer-path."
        )


def with_variants(
    model: ServedModel, adapters: Sequence[NamedAdapter], vocabularies: Sequence[Vocabulary]
) -> ServedModel:
    """The model, and beside it one name for each adapter that has a name; `vocabularies` are the adapters'."""
    variants, base = [], model.fingerprint
    for number, (each, vocabulary) in enumerate(zip(adapters, vocabularies, strict=True), 1):
        facts = (base, each.adapter.identity, *vocabulary.facts)
        if each.name is None:
            model = replace(model, adapter=number, fingerprint=fingerprint_of(*facts))
            continue
        if each.name == model.name:
            raise ConfigError(f"--lora gives an adapter the name '{each.name}', which is the model's own")
        card = replace(
            model.card,
            name=each.name,
            source=each.source,
            vocab_size=each.adapter.config.vocab_size,
            tasks=decoder_tasks(chats=vocabulary.template is not None, embeds="embedding" in model.card.tasks),
        )
        variant = replace(
            model,
            card=card,
            adapter=number,
            parent=model.name,
            tokenizer=vocabulary.tokenizer,
            template=vocabulary.chat,
            fingerprint=fingerprint_of(*facts),
        )
        logger.info("%s is %s with the adapter %s", each.name, model.name, each.source)
        variants.append(variant)
    return replace(model, variants=tuple(variants))


def constraints_of(tokenizers: Sequence[Tokenizer]) -> ConstraintFactory:
    """Stop strings, watched in the text of each adapter's own tokenizer; the base's first."""
    factories = [stop_constraints(tokenizer) for tokenizer in tokenizers]

    def compile_request(request: GenerationRequest) -> Constraint | None:
        return factories[request.adapter](request)

    return compile_request
