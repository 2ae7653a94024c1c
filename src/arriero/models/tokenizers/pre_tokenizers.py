"""How byte-level vocabularies cut a text into words before merging, by the names that GGUF files use.

The expressions are those of the models' own tokenizer.json files. `tokenizer.ggml.pre` names them as in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp, which gives the same words but for two things:
it leaves combining marks out of the expressions of `tekken` and `gpt-4o`, and reads U+3000 differently in that of
`deepseek-llm`. A normal form that a tokenizer.json asks for (Qwen's composes accents) is not in GGUF files, and neither
llama.cpp nor transformers applies one to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """The stage of a byte-level vocabulary that cuts words, as tokenizer.json writes it."""

    steps: tuple[Mapping[str, Any], ...]
    whole_words: bool = False
    """A word that is a token is that token, without merging."""


_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_CODE_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HAN = "[一-龥ࠀ-一가-퟿]+"


def _cased(ending: str) -> str:
    """Words that end, perhaps with something more, where lower case turns into upper case."""
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{_UPPER}*{_LOWER}+{ending}|{start}{_UPPER}+{_LOWER}*{ending}"


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_STARCODER = (r"\p{N}", _GPT2)
_LLAMA3 = rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_TEKKEN = rf"{_cased('')}|\p{{N}}|{_CODE_SYMBOLS}|{_SPACES}"
_GPT4O = rf"{_cased(_CONTRACTION + '?')}|\p{{N}}{{1,3}}|{_CODE_SYMBOLS}|{_SPACES}"
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}")
_DEEPSEEK_LLM = (
    r"[\r\n]",
    r"\s?[\p{Lu}\p{Ll}\p{Lt}&&[^ՠ-ֈა-ჿ]]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    _HAN,
    r"\p{N}+",
)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)


def _cut(*expressions: str, whole_words: bool = False) -> PreTokenizer:
    """Cut by one expression after the other, then write bytes as letters."""
    splits = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in expressions
    ]
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return PreTokenizer((*splits, letters), whole_words)


PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    name: pre_tokenizer
    for names, pre_tokenizer in (
        ("default", _cut(*_DEFAULT)),
        ("gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum", _cut(_GPT2)),
        ("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", _cut(*_STARCODER)),
        ("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2", _cut(_LLAMA3, whole_words=True)),
        ("dbrx smaug-bpe chatglm-bpe glm4", _cut(_LLAMA3)),
        ("qwen2 deepseek-r1-qwen megrez stablelm2 hunyuan solar-open grok-2 kormo f2llmv2", _cut(_QWEN2)),
        ("tekken", _cut(_TEKKEN, whole_words=True)),
        ("gpt-4o llama4 kanana2 talkie minimax-m2", _cut(_GPT4O)),
        ("falcon", _cut(*_FALCON)),
        ("bloom poro-chat gpt3-finnish", _cut(_BLOOM)),
        ("viking", _cut(_BLOOM, r"\p{N}")),
        ("deepseek-coder", _cut(*_DEEPSEEK_CODER)),
        ("deepseek-llm", _cut(*_DEEPSEEK_LLM)),
        ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", _cut(*_DEEPSEEK_V3)),
    )
    for name in names.split()
}
"""By the value of `tokenizer.ggml.pre`."""
