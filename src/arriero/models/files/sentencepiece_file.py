"""A SentencePiece model: the file `tokenizer.model`, a message of protocol buffers with pieces, scores and settings.

The few fields that matter are read here, so that neither the library nor protobuf's generated classes are needed.
Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
and https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path

from arriero.errors import ModelLoadError, UnsupportedModel

SPACE = "▁"
"""What the pieces write for a space."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_UNIGRAM, _BPE = 1, 2
_NO_ID = 2**64 - 1
"""-1, as which a model says that it has no such token."""


class Kind(IntEnum):
    """What a piece is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Piece:
    """One token: a piece of text with its score, the higher the better."""

    text: str
    score: float
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceModel:
    """The pieces by their ids, and how a text is brought to them."""

    pieces: tuple[Piece, ...]
    is_unigram: bool
    """Pieces by the likeliest segmentation; else by merging the best pair of neighbours."""
    byte_fallback: bool
    unknown_id: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    charsmap: bytes
    """Compiled normalisation rules, empty for none."""
    adds_prefix: bool
    """Whether a text gets a space in front."""
    removes_spaces: bool
    """Whether spaces at the ends, and repeated ones, are dropped."""

    def text(self, id: int | None) -> str | None:
        """The text of a piece; None for no id."""
        return None if id is None or id >= len(self.pieces) else self.pieces[id].text


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """The model in a file.

    Raises:
        ModelLoadError: the file cannot be read, or is no SentencePiece model.
        UnsupportedModel: it segments words or characters, or writes spaces in another way.
    """
    try:
        status = path.stat()
        return _read(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}.") from error


@lru_cache(maxsize=2)
def _read(path: Path, size: int, time: int) -> SentencePieceModel:
    """Kept for the next who asks: metadata and tokenizer of one model, some tenths of a second each."""
    try:
        return _model(path, path.read_bytes())
    except (ValueError, IndexError, struct.error) as error:
        raise ModelLoadError(f"{path}: is not a whole SentencePiece model.") from error


@lru_cache(maxsize=2)
def merges_by_score(pieces: tuple[Piece, ...]) -> tuple[tuple[str, str], ...]:
    """Every way to put a piece together from two others, the best piece first; kept, since it takes a while.

    SentencePiece merges whichever neighbours make the piece of the highest score.
    """
    mergeable = {piece.text for piece in pieces if piece.kind in (Kind.NORMAL, Kind.USER_DEFINED, Kind.UNUSED)}
    merges = []
    for piece in sorted((piece for piece in pieces if piece.text in mergeable), key=lambda piece: -piece.score):
        for cut in range(1, len(piece.text)):
            left, right = piece.text[:cut], piece.text[cut:]
            if left in mergeable and right in mergeable:
                merges.append((left, right))
    return tuple(merges)


def _model(path: Path, content: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(content):
        if number == 1:
            pieces.append(_piece(_message(value)))
        elif number == 2:
            trainer = dict(_fields(_message(value)))
        elif number == 3:
            normalizer = dict(_fields(_message(value)))
    if not pieces:
        raise ValueError("no pieces")
    kind = _number(trainer, 3, _UNIGRAM)
    if kind not in (_UNIGRAM, _BPE) or _number(trainer, 24, 0) or not _number(normalizer, 5, 1):
        raise UnsupportedModel(
            f"{path}: is a SentencePiece model that segments words or characters, or marks spaces in a way of its own; "
            "Arriero reads unigram and BPE models."
        )
    return SentencePieceModel(
        pieces=tuple(pieces),
        is_unigram=kind == _UNIGRAM,
        byte_fallback=bool(_number(trainer, 35, 0)),
        unknown_id=next((id for id, piece in enumerate(pieces) if piece.kind is Kind.UNKNOWN), 0),
        bos_id=_id(trainer, 41, 1, pieces),
        eos_id=_id(trainer, 42, 2, pieces),
        pad_id=_id(trainer, 43, _NO_ID, pieces),
        charsmap=_message(normalizer.get(2, b"")),
        adds_prefix=bool(_number(normalizer, 3, 1)),
        removes_spaces=bool(_number(normalizer, 4, 1)),
    )


def _piece(content: bytes) -> Piece:
    text, score, kind = "", 0.0, Kind.NORMAL
    for number, value in _fields(content):
        if number == 1:
            text = _message(value).decode("utf-8")
        elif number == 2:
            (score,) = struct.unpack("<f", _message(value))
        elif number == 3:
            kind = Kind(int(value))
    if score != score:
        raise ValueError("a score that is no number")
    return Piece(text, score, kind)


def _id(trainer: dict[int, int | bytes], number: int, default: int, pieces: list[Piece]) -> int | None:
    id = _number(trainer, number, default)
    return id if id < len(pieces) and pieces[id].kind is Kind.CONTROL else None


def _number(message: dict[int, int | bytes], number: int, default: int) -> int:
    value = message.get(number, default)
    if isinstance(value, bytes):
        raise ValueError("a text where a number is expected")
    return value


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a text is expected")
    return value


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message: numbers as they are, everything else as its bytes."""
    offset = 0
    while offset < len(content):
        key, offset = _varint(content, offset)
        number, form = key >> 3, key & 7
        if form == _VARINT:
            value, offset = _varint(content, offset)
            yield number, value
            continue
        if form == _BYTES:
            length, offset = _varint(content, offset)
        elif form in (_FIXED32, _FIXED64):
            length = 4 if form == _FIXED32 else 8
        else:
            raise ValueError(f"a field of form {form}")
        if offset + length > len(content):
            raise ValueError("a field beyond the end")
        yield number, content[offset : offset + length]
        offset += length


def _varint(content: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
