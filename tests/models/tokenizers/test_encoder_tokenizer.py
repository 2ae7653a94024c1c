"""Texts and pairs of texts as encoders read them."""

import json

import pytest

from arriero.errors import ModelLoadError
from arriero.models.tokenizers.tokenizer import load_tokenizer

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "mat", ".", "a", "on", "Cat"]


def directory(path, settings=None, tokens=TOKENS):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (path / "vocab.txt").write_text("\n".join(tokens) + "\n", "utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(settings or {}))
    return path


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(directory(tmp_path / "bert"))


def test_words_are_cut_into_pieces_between_first_and_last(tokenizer):
    assert tokenizer.encode("The cats sat.") == [2, 5, 6, 8, 7, 10, 3]
    assert tokenizer.encode("") == [2, 3]
    assert tokenizer.encode("dog") == [2, 1, 3]
    assert tokenizer.decode(tokenizer.encode("The cats sat")) == "the cats sat"


def test_case_is_kept_where_the_settings_say_so(tmp_path):
    assert load_tokenizer(directory(tmp_path / "cased", {"do_lower_case": False})).encode("Cat") == [2, 13, 3]
    path = directory(tmp_path / "lowered", {"do_lower_case": False})
    (path / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert load_tokenizer(path).encode("Cat") == [2, 6, 3]


def test_control_tokens_typed_by_a_user_can_stay_text(tokenizer):
    assert tokenizer.encode("[SEP] cat") == [2, 3, 6, 3]
    assert tokenizer.encode("[SEP] cat", parse_special=False) == [2, 1, 1, 1, 6, 3]
    assert tokenizer.encode_within("[SEP] cat", 4, parse_special=False) == [2, 1, 1, 3]
    assert tokenizer.encode_pair("[SEP]", "a", parse_special=False)[0] == [2, 1, 1, 1, 3, 11, 3]


def test_long_texts_are_cut_and_keep_their_special_tokens(tokenizer):
    assert tokenizer.encode_within("the cat sat on a mat", 5) == [2, 5, 6, 7, 3]
    assert tokenizer.encode_within("the cat", 5) == [2, 5, 6, 3]


def test_pairs_have_a_first_segment(tokenizer):
    assert tokenizer.encode_pair("the cat", "a mat") == ([2, 5, 6, 3, 11, 9, 3], 4)
    assert tokenizer.encode_pair("", "") == ([2, 3, 3], 2)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("cat", "the cat sat on a mat", ([2, 6, 3, 5, 6, 7, 3], 3)),
        ("the cat sat on a mat", "cat", ([2, 5, 6, 7, 3, 6, 3], 5)),
        ("the cat sat on", "a mat sat on", ([2, 5, 6, 3, 11, 9, 3], 4)),
    ],
)
def test_of_a_long_pair_the_longer_text_is_cut(tokenizer, first, second, expected):
    assert tokenizer.encode_pair(first, second, max_tokens=7) == expected


def test_a_vocabulary_without_the_tokens_it_needs_is_named(tmp_path):
    with pytest.raises(ModelLoadError, match=r"vocab\.txt: has no token \[SEP\]"):
        load_tokenizer(directory(tmp_path / "bert", tokens=["[PAD]", "[UNK]", "[CLS]", "a"]))
