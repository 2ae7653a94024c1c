import json
import re

import pytest
from transformers import LlamaTokenizer, T5Tokenizer

from arriero.models.tokenizers.tokenizer import load_tokenizer
from references import sentencepieces
from references.tokenizer_strings import strings

REFERENCES = sentencepieces.read()


@pytest.mark.parametrize("kind", sentencepieces.KINDS)
def test_the_committed_answers_are_those_of_the_library_today(kind):
    reference = REFERENCES[kind]
    assert sentencepieces.answers(reference["model"]) == {name: reference[name] for name in ("ids", "decoded")}


# transformers takes a space at the beginning of a text, or after a special token, for the one that it would put there;
# the library does not. A second beginning of a text is left out by us alone.
SPACE_AT_A_BEGINNING = re.compile(r"^[ ▁]|^<s>|(<s>|</s>|<unk>)[ ▁]")
LLAMA_STRINGS = [text for text in strings() if not SPACE_AT_A_BEGINNING.search(text)]


@pytest.mark.parametrize(("kind", "legacy"), [("llama", True), ("llama", False), ("user-defined", False)])
def test_a_llama_tokenizer_is_that_of_transformers(kind, legacy, tmp_path):
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "add_bos_token": True, "add_eos_token": True}
    (tmp_path / "tokenizer.model").write_bytes(REFERENCES[kind]["model"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, theirs = load_tokenizer(tmp_path), LlamaTokenizer.from_pretrained(tmp_path)
    for text in LLAMA_STRINGS:
        assert ours.encode(text) == theirs(text)["input_ids"], text


def test_a_t5_tokenizer_is_that_of_transformers(tmp_path):
    (tmp_path / "spiece.model").write_bytes(REFERENCES["t5"]["model"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    ours, theirs = load_tokenizer(tmp_path), T5Tokenizer.from_pretrained(tmp_path)
    assert ours.vocab_size == len(theirs)
    for text in strings():
        if "\x85" not in text:  # a line's end to transformers, a character without a piece to the library
            assert ours.encode(text) == theirs(text)["input_ids"], text
