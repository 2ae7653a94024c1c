"""A directory as translation models of Marian have it, made of two of the SentencePiece models of sentencepieces.py."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

from arriero.models.files.sentencepiece_file import Kind, read_sentencepiece
from references import sentencepieces

SOURCE, TARGET = "t5", "unigram-spaces"
"""Kinds of sentencepieces.KINDS."""


def write_directory(path: Path) -> dict[str, int]:
    """Write source and target language, and a vocabulary of both in another order than either's; returns that."""
    models = sentencepieces.read()
    texts = {"</s>": 0, "<unk>": 1, ">>fra<<": 2}
    for name, kind in (("source.spm", SOURCE), ("target.spm", TARGET)):
        (path / name).write_bytes(models[kind]["model"])
        for piece in reversed(read_sentencepiece(path / name).pieces):
            if piece.kind is not Kind.CONTROL:
                texts.setdefault(piece.text, len(texts))
    texts["<pad>"] = len(texts)
    (path / "vocab.json").write_text(json.dumps(texts))
    config = {"model_type": "marian", "architectures": ["MarianMTModel"], "eos_token_id": 0, "vocab_size": len(texts)}
    (path / "config.json").write_text(json.dumps(config))
    return texts


def composes(text: str) -> bool:
    """Whether the rules for combining marks come in, of which `tokenizers` takes another one where several fit."""
    return any(unicodedata.category(character).startswith("M") for character in text)
