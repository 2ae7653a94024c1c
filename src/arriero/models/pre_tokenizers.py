"""How byte-level vocabularies cut a text into words before merging, by the names that GGUF files use.

The expressions are those of the models' own tokenizer.json files. `tokenizer.ggml.pre` names them as in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """The first stages of a byte-level vocabulary, as tokenizer.json writes them."""

    steps: tuple[Mapping[str, Any], ...]
    whole_words: bool = False
    """Take a word that is a token as that token, without merging."""
    normal_form: bool = False
    """Compose accents (Unicode's NFC) first."""


def _split(*patterns: str) -> list[dict[str, Any]]:
    return [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]


def _byte_level(*, words: bool) -> list[dict[str, Any]]:
    """Bytes to letters at the end; `words` cuts as GPT-2 did first."""
    return [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words}]


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_OTHER = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(suffix: str) -> str:
    """Words that end where lower case turns to upper case."""
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{_UPPER}*{_LOWER}+{suffix}|{start}{_UPPER}+{_LOWER}*{suffix}"


_DIGITS = {"type": "Digits", "individual_digits": True}
_GPT2 = PreTokenizer((*_byte_level(words=True),))
_STARCODER = PreTokenizer((_DIGITS, *_byte_level(words=True)))


def _words(expression: str, **options: bool) -> PreTokenizer:
    return PreTokenizer((*_split(expression), *_byte_level(words=False)), **options)


_LLAMA3 = rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}{{1,3}}|{_OTHER}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}|{_OTHER}|{_SPACES}"

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _STARCODER),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), _words(_LLAMA3, whole_words=True)
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _words(_LLAMA3)),
    **dict.fromkeys(("qwen2", "stablelm2"), _words(_QWEN2, normal_form=True)),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez"), _words(_QWEN2)),
}
"""By the value of `tokenizer.ggml.pre`."""
