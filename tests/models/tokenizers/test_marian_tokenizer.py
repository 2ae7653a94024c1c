"""Two languages in one vocabulary: the source is cut as the SentencePiece library cuts it."""

import json

import pytest

from arriero.errors import ModelLoadError
from arriero.models.files.sentencepiece_file import read_sentencepiece
from arriero.models.tokenizers.tokenizer import load_tokenizer
from references import sentencepieces
from references.marian import SOURCE, composes, write_directory
from references.tokenizer_strings import strings


def test_ids_are_those_of_the_source_in_the_common_vocabulary(tmp_path):
    ids = write_directory(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    pieces = read_sentencepiece(tmp_path / "source.spm").pieces
    compared = differing = 0
    for text, of_source in zip(strings(), sentencepieces.read()[SOURCE]["ids"], strict=True):
        expected = [ids[pieces[id].text] for id in of_source] + [ids["</s>"]]
        if composes(text) or ids["<unk>"] in expected:
            continue
        compared += 1
        differing += tokenizer.encode(text, parse_special=False) != expected
    assert compared > 500
    assert differing <= compared // 100  # segmentations that are as likely as others


def test_the_name_of_a_language_is_a_token(tmp_path):
    ids = write_directory(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode(">>fra<< a") == [ids[">>fra<<"], *tokenizer.encode("a")]
    assert tokenizer.end_token_ids == {ids["</s>"]}
    assert tokenizer.decode(tokenizer.encode("good morning")) == "good morning"


def test_a_vocabulary_with_gaps_is_refused(tmp_path):
    write_directory(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"</s>": 0, "<unk>": 1, "<pad>": 3}))
    with pytest.raises(ModelLoadError, match="expected the ids 0 to 2, each once"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_without_an_end_is_refused(tmp_path):
    write_directory(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"<unk>": 0, "<pad>": 1}))
    with pytest.raises(ModelLoadError, match="has no token </s>"):
        load_tokenizer(tmp_path)
