from pathlib import Path

import pytest
from transformers import AutoTokenizer

from arriero.models.tokenizers.tokenizer import load_tokenizer
from references.token_ids import read, transformers_ids
from references.tokenizer_strings import strings

DIRECTORIES = ("smollm-like", "llama3-like", "qwen2", "llama", "llama-legacy", "llama-odd", "unigram")


@pytest.mark.parametrize("name", DIRECTORIES)
def test_the_committed_ids_are_those_of_transformers_today(name, vocabularies):
    assert transformers_ids(vocabularies[name]) == read()[name]


# transformers drops all spaces in front with `unigram`, and keeps special tokens that are normalised with `llama-odd`.
@pytest.mark.parametrize("name", [name for name in DIRECTORIES if name not in ("unigram", "llama-odd")])
def test_decoded_text_is_that_of_transformers(name, vocabularies):
    ours, theirs = load_tokenizer(vocabularies[name]), AutoTokenizer.from_pretrained(vocabularies[name])
    for text in strings():
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


def test_the_real_model_saved_by_transformers_has_the_ids_of_transformers(smollm2_path: Path, tmp_path: Path):
    theirs = AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    ours = load_tokenizer(tmp_path)
    for text in strings():
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.encode(text, parse_special=False) == theirs(text, split_special_tokens=True)["input_ids"]


def test_transformers_reads_the_real_model_differently_only_beside_digits(smollm2_path: Path):
    """It does not know the pre-tokenizer that the file names, which takes digits one by one; llama.cpp does."""
    theirs = AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)
    ours = load_tokenizer(smollm2_path)
    different = [text for text in strings() if ours.encode(text) != theirs(text)["input_ids"]]
    assert 0 < len(different) < 100
    assert all(any(character.isnumeric() for character in text) for text in different)
