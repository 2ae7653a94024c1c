"""tokenizer.json for directories that have none: from a SentencePiece model, or from vocab.json and merges.txt.

What the files leave unsaid is as in transformers' tokenizer classes.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.files.json_files import brief, read_json
from arriero.models.files.sentencepiece_file import (
    SPACE,
    Kind,
    Piece,
    SentencePieceModel,
    merges_by_score,
    read_sentencepiece,
)
from arriero.models.tokenizers.marian_tokenizer import SOURCE, SPECIAL_TOKENS, is_marian, marian_vocabulary
from arriero.models.tokenizers.pre_tokenizers import PRE_TOKENIZERS

TOKENIZER_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt", SOURCE)
"""The vocabulary of a directory without tokenizer.json: a SentencePiece model, or vocab.json with one of its two
neighbours."""
_SENTENCEPIECE = ("LlamaTokenizer", "LLaMATokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "GemmaTokenizer")
_T5 = ("T5Tokenizer", "T5TokenizerFast", "MT5Tokenizer", "t5", "mt5", "umt5")
"""Classes, or types of models, whose ids are those of the SentencePiece model itself."""
_GPT2 = ("GPT2Tokenizer", "gpt2", "gpt_neo", "gptj", "CodeGenTokenizer", "codegen", "phi")
_ROBERTA = ("RobertaTokenizer", "roberta", "BartTokenizer", "bart", "LongformerTokenizer", "longformer", "LEDTokenizer")
_QWEN2 = ("Qwen2Tokenizer", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
_BYTE_LEVEL = {"gpt2": _GPT2, "roberta": _ROBERTA, "qwen2": _QWEN2}
_END = "<|endoftext|>"
_BYTE_LEVEL_TOKENS: Mapping[str, tuple[Mapping[str, str], Mapping[str, bool]]] = {
    "gpt2": ({"bos_token": _END, "eos_token": _END, "unk_token": _END}, {}),
    "roberta": (
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "cls_token": "<s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        {"add_bos_token": True, "add_eos_token": True},
    ),
    "qwen2": ({"eos_token": _END, "pad_token": _END}, {}),
}
_LITERAL_BYTE = "<(?=0x[0-9A-F]{2}>)"


@dataclass(frozen=True, slots=True)
class SlowTokenizer:
    """What the files beside the weights say together."""

    document: dict[str, Any]
    """The contents of the tokenizer.json that does the same."""
    special_tokens: Mapping[str, str]
    """Those that its class or vocabulary has unless tokenizer_config.json says otherwise."""
    marks: Mapping[str, bool]
    """Whether `add_bos_token` and `add_eos_token`, unless tokenizer_config.json says otherwise."""

    @property
    def ids(self) -> Mapping[str, int]:
        """Ids of the tokens that are found in a text before anything else."""
        return {token["content"]: token["id"] for token in self.document["added_tokens"]}


def has_slow_tokenizer(directory: Path) -> bool:
    """Whether older files stand in for a missing tokenizer.json."""
    if (directory / "tokenizer.json").exists():
        return False
    return _model_file(directory) is not None or (directory / "merges.txt").is_file() or is_marian(directory)


def slow_tokenizer(directory: Path) -> SlowTokenizer:
    """The tokenizer of a directory that has no tokenizer.json.

    Raises:
        ModelLoadError: there are no such files, or they are damaged.
        UnsupportedModel: the tokenizer is of a kind that is not read without a tokenizer.json.
    """
    file = _model_file(directory)
    settings = _optional(directory / "tokenizer_config.json")
    kind = _kind(settings, _optional(directory / "config.json"))
    if is_marian(directory):
        slow = _from_marian(directory)
    elif file is not None:
        slow = _from_sentencepiece(file, read_sentencepiece(file), kind, settings)
    elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        slow = _from_merges(directory, kind, settings)
    else:
        raise ModelLoadError(
            f"{directory}: has no tokenizer.json, no tokenizer.model, no vocab.json with merges.txt and no vocab.txt."
        )
    _add_tokens(directory, slow, settings)
    return slow


def _model_file(directory: Path) -> Path | None:
    return next((directory / name for name in TOKENIZER_FILES[:3] if (directory / name).is_file()), None)


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def _kind(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The class that transformers would take, or else the model's type; empty where nothing says."""
    values = (settings.get("tokenizer_class"), config.get("tokenizer_class"), config.get("model_type"))
    return next((value for value in values if isinstance(value, str)), "")


def _from_sentencepiece(file: Path, model: SentencePieceModel, kind: str, settings: Mapping[str, Any]) -> SlowTokenizer:
    if "Tokenizer" in kind and kind not in (*_SENTENCEPIECE, *_T5):
        raise UnsupportedModel(
            f"{file}: {kind} gives the pieces other ids than this file; Arriero reads it from a tokenizer.json, which "
            "transformers writes when it saves the tokenizer."
        )
    pieces = list(model.pieces)
    if kind in _T5:
        count = settings.get("extra_ids", 100)
        pieces += [Piece(f"<extra_id_{id}>", 0.0, Kind.CONTROL) for id in reversed(range(count))]
    ids = {piece.text: id for id, piece in enumerate(pieces)}
    if len(ids) < len(pieces):
        raise ModelLoadError(f"{file}: lists a piece twice.")
    # After a special token, `legacy: false` sees no beginning of a text, and the library none after a user-defined one.
    user_defined = any(piece.kind is Kind.USER_DEFINED for piece in pieces)
    only_first = settings.get("legacy", not user_defined) is False
    given = settings.get("add_prefix_space")
    prefix = model.adds_prefix if given is None else bool(given)
    added = [
        _added(id, piece.text, special=not _is_within(piece), normalized=_is_within(piece) and only_first)
        for id, piece in enumerate(pieces)
        if piece.kind in (Kind.UNKNOWN, Kind.CONTROL, Kind.USER_DEFINED)
    ]
    names = {"bos_token": model.bos_id, "eos_token": model.eos_id, "pad_token": model.pad_id}
    texts = {name: pieces[id].text for name, id in {**names, "unk_token": model.unknown_id}.items() if id is not None}
    return SlowTokenizer(
        {
            "version": "1.0",
            "added_tokens": added,
            "normalizer": _normalizer(model, prefix, only_first),
            "pre_tokenizer": _pre_tokenizer(model, prefix, only_first),
            "post_processor": None,
            "decoder": _decoder(model, prefix),
            "model": _unigram(model, pieces) if model.is_unigram else _bpe(model, pieces, ids),
        },
        texts,
        {"add_bos_token": kind not in _T5, "add_eos_token": kind in _T5},
    )


def _add_tokens(directory: Path, slow: SlowTokenizer, settings: Mapping[str, Any]) -> None:
    """Add what added_tokens.json and tokenizer_config.json list, behind the vocabulary or in place of its tokens."""
    file = directory / "added_tokens.json"
    wanted: dict[str, tuple[int, bool]] = {}
    for text, id in _optional(file).items():
        if type(id) is not int:
            raise ModelLoadError(f"{file}: the id of {brief(text)} is {brief(id)}, expected an integer.")
        wanted[text] = (id, False)
    decoder = settings.get("added_tokens_decoder")
    for id, token in decoder.items() if isinstance(decoder, dict) else ():
        if not (isinstance(token, dict) and isinstance(token.get("content"), str) and id.isdigit()):
            raise ModelLoadError(f"{directory / 'tokenizer_config.json'}: added_tokens_decoder lists {brief(token)}.")
        wanted[token["content"]] = (int(id), bool(token.get("special")))
    more = settings.get("additional_special_tokens") or ()
    special = {each.get("content") if isinstance(each, dict) else each for each in more}
    added: dict[str, dict[str, Any]] = {token["content"]: token for token in slow.document["added_tokens"]}
    vocabulary = _vocabulary(slow.document)
    size = len(vocabulary)
    for text, (id, is_special) in sorted(wanted.items(), key=lambda item: item[1]):
        expected = vocabulary.get(text, size)
        if id != expected:
            raise ModelLoadError(f"{directory}: the added token {text} has the id {id}, expected {expected}.")
        size += text not in vocabulary
        known = added.get(text, _added(id, text, special=False))
        added[text] = {**known, "special": known["special"] or is_special or text in special}
    slow.document["added_tokens"] = list(added.values())


def _vocabulary(document: Mapping[str, Any]) -> Mapping[str, int]:
    listed = document["model"]["vocab"]
    return listed if isinstance(listed, dict) else {text: id for id, (text, _) in enumerate(listed)}


def _added(id: int, text: str, *, special: bool, normalized: bool = False) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {"id": id, "content": text, **flags, "normalized": normalized, "special": special}


def _is_within(piece: Piece) -> bool:
    """Whether a token is part of a text, not a mark around it."""
    return piece.kind is Kind.USER_DEFINED


def _replace(pattern: Mapping[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _normalizer(model: SentencePieceModel, prefix: bool, only_first: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        charsmap = base64.b64encode(model.charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if model.removes_spaces:
        steps += [_replace({"Regex": rf"\A +|[ {SPACE}]+\z"}, ""), _replace({"Regex": " {2,}"}, " ")]
    if prefix and only_first:
        # Metaspace takes a space that is there for the one that it would put in front.
        steps += [_replace({"Regex": rf"\A{SPACE}"}, SPACE * 2), _replace({"Regex": r"\A "}, f"{SPACE} ")]
    elif prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    return {"type": "Sequence", "normalizers": [*steps, _replace({"String": " "}, SPACE)]}


def _pre_tokenizer(model: SentencePieceModel, prefix: bool, only_first: bool) -> dict[str, Any] | None:
    steps: list[dict[str, Any]] = []
    if prefix and only_first:
        steps.append({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False})
    if model.is_unigram and model.byte_fallback:
        # Where a text spells the name of a byte, it is not the byte.
        steps.append(
            {"type": "Split", "pattern": {"Regex": _LITERAL_BYTE}, "behavior": "MergedWithPrevious", "invert": False}
        )
    return {"type": "Sequence", "pretokenizers": steps} if steps else None


def _decoder(model: SentencePieceModel, prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [_replace({"String": SPACE}, " ")]
    if model.byte_fallback:
        steps.append({"type": "ByteFallback"})
    steps.append({"type": "Fuse"})
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _unigram(model: SentencePieceModel, pieces: list[Piece]) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": model.unknown_id,
        "vocab": [[piece.text, piece.score] for piece in pieces],
        "byte_fallback": model.byte_fallback,
    }


def _bpe(model: SentencePieceModel, pieces: list[Piece], ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "vocab": dict(ids),
        "merges": list(merges_by_score(tuple(pieces))),
        "unk_token": model.text(model.unknown_id),
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
    }


def _from_marian(directory: Path) -> SlowTokenizer:
    """Two languages in one vocabulary, the source's cut as its model says."""
    source, model, found = marian_vocabulary(directory)
    document = {
        "version": "1.0",
        "added_tokens": [_added(id, text, special=special) for id, text, special in found],
        "normalizer": _normalizer(source, source.adds_prefix, only_first=False),
        "pre_tokenizer": _pre_tokenizer(source, source.adds_prefix, only_first=False),
        "post_processor": None,
        "decoder": _decoder(source, source.adds_prefix),
        "model": model,
    }
    return SlowTokenizer(document, SPECIAL_TOKENS, {"add_bos_token": False, "add_eos_token": True})


def _from_merges(directory: Path, kind: str, settings: Mapping[str, Any]) -> SlowTokenizer:
    """A byte-level vocabulary, as GPT-2 and many others have it."""
    name = next((name for name, kinds in _BYTE_LEVEL.items() if kind in kinds), None)
    if name is None:
        raise UnsupportedModel(
            f"{directory}: how {kind or 'its tokenizer'} cuts words is not known without a tokenizer.json, which "
            "transformers writes when it saves the tokenizer."
        )
    texts, marks = _BYTE_LEVEL_TOKENS[name]
    vocabulary = read_json(directory / "vocab.json")
    steps = [dict(step) for step in PRE_TOKENIZERS["qwen2" if name == "qwen2" else "gpt-2"].steps]
    steps[-1]["add_prefix_space"] = bool(settings.get("add_prefix_space"))
    document = {
        "version": "1.0",
        "added_tokens": [
            _added(vocabulary[text], text, special=True) for text in dict.fromkeys(texts.values()) if text in vocabulary
        ],
        "normalizer": {"type": "NFC"} if name == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": _merges(directory / "merges.txt")},
    }
    return SlowTokenizer(document, texts, marks)


def _merges(file: Path) -> list[str]:
    try:
        lines = file.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{file}: cannot be read: {error}.") from error
    return [line for line in lines if line and not line.startswith("#version")]
