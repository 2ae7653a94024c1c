"""Log-probabilities in the three shapes that clients know: of chat, of text completions, of vLLM's prompts."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from arriero.core import Logprob
from arriero.models.tokenizers.tokenizer import Tokenizer
from arriero.text.detokenize import Detokenizer
from arriero.text.stream import ScoredToken

LEAST = -9999.0
"""Stands for anything less probable, as in the reference: JSON has no infinity."""

TextLogprobs = dict[str, list[Any]]
"""`tokens`, `token_logprobs`, `top_logprobs` and `text_offset`: one element a token."""


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[ScoredToken], alternatives: int) -> dict[str, Any]:
    """A choice's `logprobs` in a chat completion."""
    return {
        "content": [
            _chat_token(tokenizer, token, score.value)
            | {"top_logprobs": [_chat_token(tokenizer, *each) for each in score.top[:alternatives]]}
            for token, score in tokens
        ],
        "refusal": None,
    }


def _chat_token(tokenizer: Tokenizer, token: int, value: float) -> dict[str, Any]:
    piece = tokenizer.token_bytes(token)
    return {"token": piece.decode("utf-8", "replace"), "logprob": max(value, LEAST), "bytes": list(piece)}


class AnswerOffsets:
    """A text completion's `logprobs`, piece by piece: it remembers where in the text the next token begins."""

    def __init__(self, tokenizer: Tokenizer, alternatives: int, start: int, skip_special_tokens: bool) -> None:
        """`start` is the length of the prompt's text: offsets count from its beginning, echoed or not."""
        self._tokenizer = tokenizer
        self._alternatives = alternatives
        self._offset = start
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens, continues=True)

    def add(self, tokens: Sequence[ScoredToken], ending: ScoredToken | None = None) -> TextLogprobs:
        """The next tokens' entries, and that of the token that ends the answer behind its last character."""
        offsets = []
        for token, _ in tokens:
            offsets.append(self._offset)
            self._offset += len(self._detokenizer.add(token))
        if ending is not None:
            tokens = [*tokens, ending]
            offsets.append(self._offset + len(self._detokenizer.flush()))
        return _text_logprobs(self._tokenizer, tokens, self._alternatives) | {"text_offset": offsets}


def prompt_text_logprobs(
    tokenizer: Tokenizer, prompt: Sequence[int], text: str, scores: Sequence[Logprob | None], alternatives: int
) -> TextLogprobs:
    """The entries of an echoed prompt; the first token's are null. `text` is what is echoed."""
    scored = list(zip(prompt, scores, strict=True))
    return _text_logprobs(tokenizer, scored, alternatives) | {"text_offset": _offsets(tokenizer, prompt, text)}


def prompt_table(
    tokenizer: Tokenizer, prompt: Sequence[int], scores: Sequence[Logprob | None], alternatives: int
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: by token id, each prompt token and the most probable ones in its place."""
    return [
        None if score is None else _ranked(tokenizer, token, score, alternatives)
        for token, score in zip(prompt, scores, strict=True)
    ]


def _ranked(tokenizer: Tokenizer, token: int, score: Logprob, alternatives: int) -> dict[str, Any]:
    ranks = {each: rank for rank, (each, _) in enumerate(score.top, 1)}
    listed = {token: score.value} | dict(score.top[:alternatives])
    return {
        str(each): {
            "logprob": max(value, LEAST),
            "rank": ranks.get(each),
            "decoded_token": tokenizer.token_bytes(each).decode("utf-8", "replace"),
        }
        for each, value in listed.items()
    }


def _text_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[tuple[int, Logprob | None]], alternatives: int
) -> TextLogprobs:
    return {
        "tokens": [_name(tokenizer, token) for token, _ in tokens],
        "token_logprobs": [None if score is None else max(score.value, LEAST) for _, score in tokens],
        "top_logprobs": [
            None if score is None else _by_name(tokenizer, token, score, alternatives) for token, score in tokens
        ],
    }


def _by_name(tokenizer: Tokenizer, token: int, score: Logprob, alternatives: int) -> dict[str, float]:
    """The alternatives and, as in the reference, the token itself; of two that read the same the more probable."""
    named: dict[str, float] = {}
    for each, value in (*score.top[:alternatives], (token, score.value)):
        named.setdefault(_name(tokenizer, each), max(value, LEAST))
    return named


def _name(tokenizer: Tokenizer, token: int) -> str:
    """A token's text or, where that is no whole character, its bytes in the reference's notation."""
    piece = tokenizer.token_bytes(token)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _offsets(tokenizer: Tokenizer, prompt: Sequence[int], text: str) -> list[int]:
    """Where in `text` each token begins. What is not there, such as a beginning of sequence, takes no room."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets, offset = [], 0
    for token in prompt:
        offsets.append(offset)
        piece = decoder.decode(tokenizer.token_bytes(token))
        if not text.startswith(piece, offset):
            bare = piece.removeprefix(" ")
            piece = bare if text.startswith(bare, offset) else "" if tokenizer.is_special(token) else piece
        offset = min(offset + len(piece), len(text))
    return offsets
