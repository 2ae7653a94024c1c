"""A GGUF file's vocabulary in the form of tokenizer.json.

Fields: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "Tokenizer". What the files leave unsaid is as in
llama.cpp, whose ids these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arriero.errors import ModelLoadError
from arriero.models.files.sentencepiece_file import SPACE, Kind, Piece, merges_by_score
from arriero.models.tokenizers.pre_tokenizers import PRE_TOKENIZERS
from arriero.models.tokenizers.tokenizer_json import added_token, sequence_marks

_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unknown": 0}


def gguf_document(path: Path, fields: Mapping[str, Any], *, add_bos: bool) -> dict[str, Any]:
    """The tokenizer.json that does what the metadata `fields` of the GGUF file at `path` say.

    Raises `ModelLoadError` for metadata that is damaged or describes a vocabulary of a kind not read here.
    """
    vocabulary = _Vocabulary(path, fields)
    kind = fields.get("tokenizer.ggml.model")
    if kind == "gpt2":
        steps = _byte_level(vocabulary)
    elif kind == "llama":
        steps = _sentencepiece(vocabulary)
    else:
        raise ModelLoadError(
            f"{path}: tokenizer.ggml.model is {kind!r}, Arriero reads gpt2 (byte-level) and llama (SentencePiece)."
        )
    add_eos = bool(fields.get("tokenizer.ggml.add_eos_token"))
    bos, eos = vocabulary.named("bos"), vocabulary.named("eos")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added(),
        "post_processor": sequence_marks(bos if add_bos else None, eos if add_eos else None),
        **steps,
    }


class _Vocabulary:
    """The lists that every kind of vocabulary has, checked."""

    def __init__(self, path: Path, fields: Mapping[str, Any]) -> None:
        self.path = path
        self.fields = fields
        self.tokens = [text or f"[EMPTY_{id}]" for id, text in enumerate(self._list("tokens", str))]
        self.ids = {text: id for id, text in enumerate(self.tokens)}
        if not self.tokens or len(self.ids) < len(self.tokens):
            raise ModelLoadError(f"{path}: tokenizer.ggml.tokens is empty or lists a token twice.")
        self.types = self._list("token_type", int, len(self.tokens)) or [Kind.NORMAL] * len(self.tokens)

    def scores(self) -> list[float]:
        return self._list("scores", (int, float), len(self.tokens))

    def pieces(self) -> tuple[Piece, ...]:
        """The tokens as those of a SentencePiece model, whose kinds have the same numbers."""
        scores = self.scores()
        if not scores:
            raise ModelLoadError(f"{self.path}: tokenizer.ggml.scores is missing.")
        kinds = {kind.value: kind for kind in Kind}
        return tuple(
            Piece(text, score, kinds.get(type, Kind.UNUSED))
            for text, score, type in zip(self.tokens, scores, self.types, strict=True)
        )

    def merges(self) -> list[str]:
        return self._list("merges", str)

    def named(self, name: str) -> tuple[str, int] | None:
        """Text and id of a token such as `bos`."""
        default = _SENTENCEPIECE_IDS.get(name) if self.fields.get("tokenizer.ggml.model") == "llama" else None
        id = self.fields.get(f"tokenizer.ggml.{name}_token_id", default)
        return (self.tokens[id], id) if type(id) is int and 0 <= id < len(self.tokens) else None

    def added(self) -> list[dict[str, Any]]:
        """Tokens that are found in the text before anything else, user-defined ones even where it is only text."""
        return [
            added_token(id, self.tokens[id], special=type != Kind.USER_DEFINED)
            for id, type in enumerate(self.types)
            if type in (Kind.UNKNOWN, Kind.CONTROL, Kind.USER_DEFINED)
        ]

    def _list(self, name: str, kind: type | tuple[type, ...], length: int | None = None) -> list[Any]:
        key = f"tokenizer.ggml.{name}"
        value = self.fields.get(key, [])
        if not isinstance(value, list) or (value and not isinstance(value[0], kind)):
            raise ModelLoadError(f"{self.path}: {key} is not a list of the expected kind.")
        if value and length is not None and len(value) != length:
            raise ModelLoadError(f"{self.path}: {key} has {len(value)} entries for {length} tokens.")
        return value


def _byte_level(vocabulary: _Vocabulary) -> dict[str, Any]:
    name = vocabulary.fields.get("tokenizer.ggml.pre", "default")
    pre_tokenizer = PRE_TOKENIZERS.get(name)
    if pre_tokenizer is None:
        raise ModelLoadError(f"{vocabulary.path}: tokenizer.ggml.pre is {name!r}, a pre-tokenizer not known here.")
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(pre_tokenizer.steps)},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": vocabulary.ids,
            "merges": vocabulary.merges(),
            "ignore_merges": pre_tokenizer.whole_words,
        },
    }


def _sentencepiece(vocabulary: _Vocabulary) -> dict[str, Any]:
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    normalizers = [escape]
    if vocabulary.fields.get("tokenizer.ggml.add_space_prefix", True):
        normalizers.insert(0, {"type": "Prepend", "prepend": SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = vocabulary.named("unknown")
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "vocab": vocabulary.ids,
            "merges": list(merges_by_score(vocabulary.pieces())),
            "unk_token": unknown and unknown[0],
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }
