"""tokenizer.json for translation models of Marian: two SentencePiece models, and the ids of both in vocab.json.

The text to translate is cut by source.spm; every piece of both languages has its id from vocab.json. The pieces that
source.spm does not know get a score so low that a text is never cut into them if it can be cut otherwise. A name of
the target language in front of a text, such as `>>fra<<`, is a token of its own. As in transformers' MarianTokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.files.json_files import read_json
from arriero.models.files.sentencepiece_file import Kind, SentencePieceModel, read_sentencepiece

SOURCE, VOCABULARY = "source.spm", "vocab.json"
SPECIAL_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
FAR = 1000.0
"""How much less probable a piece of the other language is than any of this one's."""


def is_marian(directory: Path) -> bool:
    """Whether the directory has the files of such a tokenizer."""
    return (directory / SOURCE).is_file() and (directory / VOCABULARY).is_file()


def marian_vocabulary(directory: Path) -> tuple[SentencePieceModel, dict[str, Any], list[tuple[int, str, bool]]]:
    """The source language's model, the tokenizer's `model`, and the tokens (id, text, special) found before all others.

    Raises:
        ModelLoadError: a file is damaged, or vocab.json has ids that are not consecutive.
        UnsupportedModel: source.spm is of another kind.
    """
    source = read_sentencepiece(directory / SOURCE)
    if not source.is_unigram:
        raise UnsupportedModel(f"{directory / SOURCE}: is no unigram model, as those of Marian are.")
    file = directory / VOCABULARY
    ids = read_json(file)
    if sorted(id for id in ids.values() if type(id) is int) != list(range(len(ids))):
        raise ModelLoadError(f"{file}: expected the ids 0 to {len(ids) - 1}, each once.")
    for text in SPECIAL_TOKENS.values():
        if text not in ids:
            raise ModelLoadError(f"{file}: has no token {text}.")
    scores = {piece.text: piece.score for piece in source.pieces if piece.kind in (Kind.NORMAL, Kind.USER_DEFINED)}
    lowest = min(scores.values(), default=0.0) - FAR
    texts = sorted(ids, key=ids.__getitem__)
    model = {
        "type": "Unigram",
        "unk_id": ids[SPECIAL_TOKENS["unk_token"]],
        "vocab": [[text, scores.get(text, lowest)] for text in texts],
        "byte_fallback": False,
    }
    special = set(SPECIAL_TOKENS.values())
    found = [(id, text, text in special) for id, text in enumerate(texts) if text in special or _is_language(text)]
    return source, model, found


def _is_language(text: str) -> bool:
    return text.startswith(">>") and text.endswith("<<")
