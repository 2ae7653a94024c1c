"""Tokens to text, one at a time."""

from __future__ import annotations

import codecs
from typing import Self

from arriero.models.tokenizers.tokenizer import Tokenizer

_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Turns a growing list of tokens into text, because a character may be spread over several tokens.

    What `add` returned so far, plus `flush`, equals `Tokenizer.decode` of all the tokens. Each token costs its
    own length, however long the text has become.

    `continues` is for tokens that follow a prompt: SentencePiece vocabularies mark the first word of a text
    with a space that is no part of it, which `decode` drops; in a continuation that space is real and stays.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._texts = tokenizer.token_texts(skip_special_tokens=skip_special_tokens)
        self._drop_space = tokenizer.adds_space_prefix and not continues
        self._decoder = _utf8_decoder("replace")
        self.pending = False
        """The last token ended inside a character."""

    def add(self, token: int) -> str:
        """The whole characters that `token` completes; often none."""
        text = self._texts[token]
        if text is not None and not self.pending and not self._drop_space:
            return text
        return self._decode(token)

    def _decode(self, token: int) -> str:
        if self._skip_special_tokens and self._tokenizer.is_special(token):
            return ""
        piece = self._tokenizer.token_bytes(token)
        if self._drop_space and piece:
            self._drop_space = False
            piece = piece.removeprefix(b" ")
        text = self._decoder.decode(piece)
        self.pending = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        """What the end of the text makes of a character that is still incomplete: U+FFFD, or nothing."""
        self.pending = False
        return self._decoder.decode(b"", final=True)

    def copy(self) -> Self:
        """An independent detokenizer in the same state."""
        other = type(self)(self._tokenizer, skip_special_tokens=self._skip_special_tokens)
        other._drop_space = self._drop_space
        other._decoder.setstate(self._decoder.getstate())
        other.pending = self.pending
        return other
