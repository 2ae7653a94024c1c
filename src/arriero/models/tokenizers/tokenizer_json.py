"""The contents of a tokenizer.json, the form in which every vocabulary reaches the `tokenizers` library.

Format: https://huggingface.co/docs/tokenizers; a directory brings the file, for GGUF it is made from the metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arriero.errors import ModelLoadError
from arriero.models.files.json_files import read_json
from arriero.models.tokenizers.slow_tokenizers import has_slow_tokenizer, slow_tokenizer


def directory_document(path: Path, special_tokens: Mapping[str, str]) -> dict[str, Any]:
    """The tokenizer.json of a Hugging Face directory, with what the files beside it change about it.

    Where there is none, it is what the older files beside the weights say.
    As in transformers: named special tokens are special whatever the file says of them, and `add_bos_token` or
    `add_eos_token`, where present, decide alone what is put around a text. Raises `ModelLoadError`.
    """
    file = path / "tokenizer.json"
    settings_file = path / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.exists() else {}
    if file.exists():
        document = read_json(file)
    elif (path / "vocab.txt").exists() and not has_slow_tokenizer(path):
        document = _word_piece(path / "vocab.txt", settings, special_tokens)
    else:
        slow = slow_tokenizer(path)
        document = slow.document
        settings = {**slow.marks, **{name: value for name, value in settings.items() if value is not None}}
    pooled_file = path / "sentence_bert_config.json"
    if pooled_file.exists() and read_json(pooled_file).get("do_lower_case") is True:
        normalizers = [{"type": "Lowercase"}, *filter(None, [document.get("normalizer")])]
        document["normalizer"] = {"type": "Sequence", "normalizers": normalizers}
    try:
        _apply_settings(document, settings, special_tokens)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{file}: is not laid out as a tokenizer.json: {error!r}.") from error
    return document


def _apply_settings(document: dict[str, Any], settings: Mapping[str, Any], special_tokens: Mapping[str, str]) -> None:
    added = {token["content"]: token for token in document.get("added_tokens") or ()}
    vocabulary = document["model"].get("vocab")
    for text in set(special_tokens.values()) - added.keys():
        if isinstance(vocabulary, dict) and text in vocabulary:
            added[text] = added_token(vocabulary[text], text, special=True)
    document["added_tokens"] = sorted(added.values(), key=lambda token: int(token["id"]))
    document["truncation"] = document["padding"] = None
    if "add_bos_token" in settings or "add_eos_token" in settings:
        bos, eos = (
            (mark, added[mark]["id"])
            if settings.get(f"add_{name}") and (mark := special_tokens.get(name)) is not None and mark in added
            else None
            for name in ("bos_token", "eos_token")
        )
        document["post_processor"] = sequence_marks(bos, eos)


def _word_piece(file: Path, settings: Mapping[str, Any], special_tokens: Mapping[str, str]) -> dict[str, Any]:
    """The tokenizer of a BERT directory that has only vocab.txt, a token a line; defaults are transformers'."""
    try:
        tokens = file.read_text("utf-8").rstrip("\n").split("\n")  # what else ends lines is part of tokens
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{file}: cannot be read: {error}.") from error
    vocabulary = {token: id for id, token in enumerate(tokens)}
    names = ("cls_token", "sep_token", "unk_token", "pad_token", "mask_token")
    marks = {name: special_tokens.get(name, f"[{name.removesuffix('_token').upper()}]") for name in names}
    for name, mark in marks.items():
        if mark not in vocabulary and name != "mask_token":
            raise ModelLoadError(f"{file}: has no token {mark}, which is the tokenizer's {name}.")
    first, last = ((marks[name], vocabulary[marks[name]]) for name in ("cls_token", "sep_token"))
    return {
        "version": "1.0",
        "added_tokens": [added_token(vocabulary[m], m, special=True) for m in marks.values() if m in vocabulary],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
            "strip_accents": settings.get("strip_accents"),
            "lowercase": settings.get("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _bert_marks(first, last),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": marks["unk_token"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }


def _bert_marks(first: tuple[str, int], last: tuple[str, int]) -> dict[str, Any]:
    """The post-processor that frames texts as BERT reads them: first A last, and a second text B last."""
    single = sequence_marks(first, last)
    assert single is not None
    second = [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": last[0], "type_id": 1}}]
    return {**single, "pair": [*single["single"], *second]}


def added_token(id: int, text: str, *, special: bool) -> dict[str, Any]:
    """A token that is found in the text before anything else."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id, "content": text, **flags, "special": special}


def sequence_marks(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> dict[str, Any] | None:
    """The post-processor that puts these tokens, given as text and id, around a text."""
    marks = [mark for mark in (bos, eos) if mark is not None]
    if not marks:
        return None

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        before = [{"SpecialToken": {"id": bos[0], "type_id": type_id}}] if bos else []
        after = [{"SpecialToken": {"id": eos[0], "type_id": type_id}}] if eos else []
        return [*before, {"Sequence": {"id": sequence, "type_id": type_id}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]} for text, id in marks},
    }
