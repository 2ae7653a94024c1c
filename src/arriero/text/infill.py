"""Prompts that have a model fill in the middle, for those that were trained to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from arriero.models.tokenizers.tokenizer import Tokenizer

STYLES = (
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)
"""What stands before the beginning, the end and the middle of a text, as the models' papers and cards have it:
CodeLlama; Qwen-Coder and CodeGemma; StarCoder; SantaCoder; DeepSeek-Coder."""

ENDS = ("▁<EOT>", "<|endoftext|>", "<|fim_pad|>", "<|file_sep|>", "<|file_separator|>", "<|repo_name|>")
"""Control tokens that end a middle, as far as a model has them."""

_ANCHOR = "☺"
"""A text before the suffix, so that no space is put before its first word."""


@dataclass(frozen=True, slots=True)
class Infill:
    """How one model is asked for the text between two others."""

    tokenizer: Tokenizer
    prefix: int
    suffix: int
    middle: int
    end_token_ids: frozenset[int]
    """What ends a middle, besides the tokens that end any answer."""

    def encode(self, before: str | Iterable[int], after: str) -> list[int]:
        """The prompt for what stands between the two; control tokens spelled in texts stay text."""
        start = self.tokenizer.encode("")[:1]
        begin = start if start == [self.tokenizer.bos_token_id] else []
        left = self._plain(before) if isinstance(before, str) else list(before)
        return [*begin, self.prefix, *left, self.suffix, *self._continued(after), self.middle]

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, parse_special=False)

    def _continued(self, text: str) -> list[int]:
        """The ids of a text that does not begin one, without the space that SentencePiece puts before a text."""
        if not self.tokenizer.adds_space_prefix:
            return self._plain(text)
        anchor, whole = self._plain(_ANCHOR), self._plain(_ANCHOR + text)
        return whole[len(anchor) :] if whole[: len(anchor)] == anchor else self._plain(text)


def infill_of(tokenizer: Tokenizer) -> Infill | None:
    """How to ask the model that has this vocabulary; None when it was not trained to fill in the middle."""
    known = tokenizer.control_tokens
    for style in STYLES:
        if all(token in known for token in style):
            ends = frozenset(known[token] for token in ENDS if token in known)
            prefix, suffix, middle = (known[token] for token in style)
            return Infill(tokenizer, prefix, suffix, middle, ends)
    return None
