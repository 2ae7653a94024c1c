"""Directories of Marian models, as they are on the hub, against transformers' MarianTokenizer."""

import warnings

import pytest
import transformers

from arriero.models.tokenizers.tokenizer import load_tokenizer
from references.marian import composes, write_directory
from references.tokenizer_strings import strings


@pytest.fixture
def both(tmp_path):
    """Our tokenizer of a directory, and transformers'."""
    write_directory(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recommends sacremoses
        reference = transformers.MarianTokenizer(
            source_spm=str(tmp_path / "source.spm"),
            target_spm=str(tmp_path / "target.spm"),
            vocab=str(tmp_path / "vocab.json"),
        )
    return load_tokenizer(tmp_path), reference


def test_ids_are_those_of_transformers(both):
    tokenizer, reference = both
    texts = [text for text in strings() if not composes(text) and reference.unk_token_id not in reference.encode(text)]
    assert len(texts) > 500
    differing = [text for text in texts if tokenizer.encode(text) != reference.encode(text)]
    assert len(differing) <= len(texts) // 100, differing[:5]  # segmentations that are as likely as others
    assert tokenizer.encode(">>fra<< good morning") == reference.encode(">>fra<< good morning")


def test_text_is_put_together_as_by_transformers(both):
    tokenizer, reference = both
    for text in ("good morning", "a  b", "the model's answer"):
        ids = reference.encode(text)
        assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)
