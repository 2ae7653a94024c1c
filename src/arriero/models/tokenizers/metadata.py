"""What the text side must know of a model beside its tokenizer: template, special tokens, where an answer ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from arriero.errors import ModelLoadError
from arriero.models.files.gguf_file import read_metadata
from arriero.models.files.json_files import read_json
from arriero.models.tokenizers.slow_tokenizers import has_slow_tokenizer, slow_tokenizer
from arriero.models.tokenizers.tokenizer import TextMetadata

Value = TypeVar("Value")

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_GGUF_NAMES = {"unk_token": "unknown_token", "sep_token": "seperator_token", "pad_token": "padding_token"}
_SENTENCEPIECE_IDS = {"bos_token": 1, "eos_token": 2, "unk_token": 0}
"""What a SentencePiece vocabulary means when it does not say, as in llama.cpp."""
_CONTROL_TOKEN = 3
_TURN_ENDS = frozenset(
    {"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"}
)
"""Control tokens that end an answer, though many GGUF files do not say so; llama.cpp finds them by name as well."""
_BOS_BY_DEFAULT = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken", "chameleon"}
)
"""Values of `tokenizer.ggml.pre` for which llama.cpp prepends the first token unless the file forbids it."""


def read_text_metadata(path: Path) -> TextMetadata:
    """The metadata of the GGUF file or Hugging Face directory at `path`.

    Raises:
        ModelLoadError: a file is missing or malformed, or a value is of the wrong type.
    """
    return _from_directory(path) if path.is_dir() else _from_gguf(path, read_metadata(path))


def _from_gguf(path: Path, fields: Mapping[str, Any]) -> TextMetadata:
    tokens: list[str] = _typed(path, "tokenizer.ggml.tokens", fields.get("tokenizer.ggml.tokens"), list) or []
    if tokens and not isinstance(tokens[0], str):
        raise ModelLoadError(f"{path}: tokenizer.ggml.tokens is a list of {type(tokens[0]).__name__}, expected texts.")

    defaults = _SENTENCEPIECE_IDS if fields.get("tokenizer.ggml.model") == "llama" else {}

    def token_id(name: str) -> int | None:
        key = f"tokenizer.ggml.{_GGUF_NAMES.get(name, name)}_id"
        number = _typed(path, key, fields.get(key, defaults.get(name)), int)
        return number if number is not None and 0 <= number < len(tokens) else None

    special = {name: token_id(name) for name in _SPECIAL_TOKENS}
    types = _typed(path, "tokenizer.ggml.token_type", fields.get("tokenizer.ggml.token_type"), list) or []
    ends = {i for i, kind in enumerate(types[: len(tokens)]) if kind == _CONTROL_TOKEN and tokens[i] in _TURN_ENDS}
    ends.update(end for name in ("eos_token", "eot_token", "eom_token") if (end := token_id(name)) is not None)
    template = _typed(path, "tokenizer.chat_template", fields.get("tokenizer.chat_template"), str)
    context = f"{fields.get('general.architecture')}.context_length"
    return TextMetadata(
        chat_template=template,
        special_tokens={name: tokens[number] for name, number in special.items() if number is not None},
        bos_token_id=special["bos_token"],
        end_token_ids=frozenset(ends),
        add_bos=_adds_bos(fields),
        context=_typed(path, context, fields.get(context), int),
    )


def _adds_bos(fields: Mapping[str, Any]) -> bool:
    by_default = fields.get("tokenizer.ggml.model") == "llama" or fields.get("tokenizer.ggml.pre") in _BOS_BY_DEFAULT
    return bool(fields.get("tokenizer.ggml.add_bos_token", by_default))


def _from_directory(path: Path) -> TextMetadata:
    config = _read_optional(path / "config.json")  # a directory may hold a tokenizer and nothing else
    generation = _read_optional(path / "generation_config.json")
    tokenizer_config = _read_optional(path / "tokenizer_config.json")
    slow = slow_tokenizer(path) if has_slow_tokenizer(path) else None
    special = _special_tokens(path, tokenizer_config, slow.special_tokens if slow else {})
    bos = generation.get("bos_token_id", config.get("bos_token_id"))
    ends = _ids(path / "config.json", config) | _ids(path / "generation_config.json", generation)
    known_ids = {} if not special else slow.ids if slow else _added_token_ids(path)
    if special.get("eos_token") in known_ids:
        ends.add(known_ids[special["eos_token"]])
    return TextMetadata(
        chat_template=_directory_template(path, tokenizer_config),
        special_tokens=special,
        bos_token_id=known_ids.get(special.get("bos_token", ""), bos if type(bos) is int else None),
        end_token_ids=frozenset(ends),
        add_bos=None,
        context=_typed(path / "config.json", "max_position_embeddings", config.get("max_position_embeddings"), int),
    )


def _special_tokens(path: Path, tokenizer_config: Mapping[str, Any], defaults: Mapping[str, str]) -> dict[str, str]:
    """tokenizer_config.json says it, or the older special_tokens_map.json; a token is a text or an object with one."""
    older = _read_optional(path / "special_tokens_map.json")
    texts = {}
    for name in _SPECIAL_TOKENS:
        value = tokenizer_config.get(name, older.get(name, defaults.get(name)))
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            texts[name] = text
    return texts


def _added_token_ids(path: Path) -> dict[str, int]:
    file = path / "tokenizer.json"
    return {
        token["content"]: token["id"]
        for token in _typed(file, "added_tokens", _read_optional(file).get("added_tokens"), list) or []
        if isinstance(token, dict) and isinstance(token.get("content"), str) and type(token.get("id")) is int
    }


def _ids(file: Path, values: Mapping[str, Any]) -> set[int]:
    """`eos_token_id`, which is one id, a list of them, or nothing."""
    value = values.get("eos_token_id")
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is int for item in listed):
        raise ModelLoadError(f"{file}: eos_token_id is {value!r}, expected token ids.")
    return set(listed)


def _directory_template(path: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja wins over tokenizer_config.json, whose value is a template or a list of named ones."""
    file = path / "chat_template.jinja"
    if file.exists():
        try:
            return file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelLoadError(f"{file}: cannot be read: {error}.") from error
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = (item for item in template if isinstance(item, dict) and item.get("name") == "default")
        template = next(named, {}).get("template")
    return _typed(path / "tokenizer_config.json", "chat_template", template, str)


def _read_optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def _typed(source: Path, name: str, value: Any, kind: type[Value]) -> Value | None:
    # A boolean is no integer here, hence no isinstance.
    if value is not None and type(value) is not kind:
        raise ModelLoadError(f"{source}: {name} is of type {type(value).__name__}, expected {kind.__name__}.")
    return value
