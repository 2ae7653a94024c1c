"""What a directory's configuration says of its model, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.files.json_files import read_json

UNLIMITED = 4096
"""Tokens that a model without a limit of its own gets, unless settings say otherwise."""
_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_SENSIBLE = 1_000_000
"""Tokenizers without a limit write an enormous number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A model that is to be loaded."""

    path: Path
    config: Any
    trust_remote_code: bool
    family: str
    context: int
    """Tokens that the model was made for: of the decoder, where it has an encoder too."""
    is_limit: bool
    """Whether it cannot take more."""
    source_context: int
    """Tokens that the encoder was made for; 0 for a decoder."""
    decoder_start: tuple[int, ...]
    """What every answer of an encoder-decoder begins with."""
    banned: tuple[int, ...]
    """Tokens that an encoder-decoder's generation settings suppress."""


def describe(path: Path, *, trust_remote_code: bool = False) -> Description:
    """Read config.json and generation_config.json of a directory.

    Raises:
        ModelLoadError: they cannot be read.
        UnsupportedModel: transformers does not know the model, or not without running code of its own.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
    except OSError as error:
        raise ModelLoadError(f"{path}: config.json cannot be read: {first_line(error)}") from error
    except Exception as error:  # a configuration's own checks raise anything
        if "trust_remote_code" in str(error):
            raise UnsupportedModel(
                f"{path}: this model needs Python code that comes with it, which is not run unless you trust its "
                "authors and say so with --trust-remote-code."
            ) from error
        raise UnsupportedModel(f"{path}: transformers cannot take this configuration: {first_line(error)}") from error
    generation = _generation(path)
    encodes = bool(config.is_encoder_decoder)
    text = config.get_text_config(decoder=True)
    relative = encodes and hasattr(config, "relative_attention_num_buckets")
    context = _first(text, ("max_decoder_position_embeddings", *_LIMITS))
    source = _first(config, ("max_encoder_position_embeddings", *_LIMITS))
    if relative:
        source = context = _tokenizer_limit(path) or context
    return Description(
        path=path,
        config=config,
        trust_remote_code=trust_remote_code,
        family=str(config.model_type),
        context=context or UNLIMITED,
        is_limit=bool(context) and not relative,
        source_context=(source or UNLIMITED) if encodes else 0,
        decoder_start=_decoder_start(path, config, generation) if encodes else (),
        banned=_banned(generation) if encodes else (),
    )


def _first(config: Any, names: tuple[str, ...]) -> int:
    """The first of these settings that is a number of tokens; 0 where none is."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if type(value) is int and value > 0), 0)


def _tokenizer_limit(path: Path) -> int:
    file = path / "tokenizer_config.json"
    limit = read_json(file).get("model_max_length") if file.is_file() else None
    return limit if type(limit) is int and 0 < limit < _SENSIBLE else 0


def _generation(path: Path) -> Mapping[str, Any]:
    """How the model's makers want it to generate; older repositories say it in config.json."""
    file = path / "generation_config.json"
    return read_json(file if file.is_file() else path / "config.json")


def _decoder_start(path: Path, config: Any, generation: Mapping[str, Any]) -> tuple[int, ...]:
    """The start token, and the one that the model's makers force to be the first."""
    named = (
        generation.get("decoder_start_token_id"),
        getattr(config, "decoder_start_token_id", None),
        generation.get("bos_token_id"),
    )
    start = next((token for token in named if type(token) is int), None)
    if start is None:
        raise ModelLoadError(f"{path}: neither configuration has a decoder_start_token_id, with which answers begin.")
    forced = generation.get("forced_bos_token_id")
    return (start,) if type(forced) is not int or forced == start else (start, forced)


def _banned(generation: Mapping[str, Any]) -> tuple[int, ...]:
    words, tokens = generation.get("bad_words_ids") or [], generation.get("suppress_tokens") or []
    if not isinstance(words, list) or not isinstance(tokens, list):
        raise ModelLoadError("bad_words_ids and suppress_tokens of the generation settings are no lists.")
    tokens = tokens + [word[0] for word in words if isinstance(word, list) and len(word) == 1]
    return tuple(sorted({token for token in tokens if type(token) is int and token >= 0}))


def first_line(error: Exception) -> str:
    """What a foreign error says, as a sentence of ours can quote it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
