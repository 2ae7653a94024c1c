from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arriero.models.tokenizers.tokenizer import Tokenizer, load_tokenizer
from arriero.text.detokenize import Detokenizer

NAMES = ("smollm-like", "qwen2", "llama", "llama-legacy", "unigram", "sentencepiece-gguf", "byte-level-gguf")
token_lists = st.lists(st.one_of(st.integers(0, 300), st.integers(0, 1500)), max_size=20)


@pytest.fixture(scope="session")
def tokenizers(vocabularies) -> dict[str, Tokenizer]:
    return {name: load_tokenizer(vocabularies[name]) for name in NAMES}


def text_of(detokenizer: Detokenizer, tokens: list[int]) -> str:
    return "".join([*map(detokenizer.add, tokens), detokenizer.flush()])


@given(token_lists, st.booleans())
def test_the_pieces_together_are_the_whole(tokenizers, tokens, skip):
    for tokenizer in tokenizers.values():
        detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
        assert text_of(detokenizer, tokens) == tokenizer.decode(tokens, skip_special_tokens=skip)


@given(st.text())
def test_written_text_comes_back(tokenizers, text):
    for name, tokenizer in tokenizers.items():
        tokens = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        together = text_of(Detokenizer(tokenizer, continues=True), tokens)
        assert together == b"".join(map(tokenizer.token_bytes, tokens)).decode("utf-8", "replace"), name


@given(token_lists, st.integers(0, 20), token_lists)
def test_a_copy_goes_its_own_way(tokenizers, tokens, at, other):
    for tokenizer in tokenizers.values():
        detokenizer = Detokenizer(tokenizer)
        before = "".join(map(detokenizer.add, tokens[:at]))
        copy = detokenizer.copy()
        assert before + text_of(detokenizer, tokens[at:]) == tokenizer.decode(tokens)
        assert before + text_of(copy, other) == tokenizer.decode(tokens[:at] + other)


def test_a_character_waits_for_all_of_its_tokens(tokenizers):
    tokenizer = tokenizers["llama"]
    tokens = [6 + byte for byte in "🪿".encode()]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.add(token) for token in tokens] == ["", "", "", "🪿"]
    assert detokenizer.flush() == ""


def test_a_character_that_stays_incomplete_is_replaced_at_the_end(tokenizers):
    tokenizer = tokenizers["llama"]
    tokens = [6 + byte for byte in "🪿".encode()[:3]]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.add(token) for token in tokens] == ["", "", ""]
    assert detokenizer.flush() == "\ufffd" == tokenizer.decode(tokens)


def test_the_space_in_front_stays_in_a_continuation(tokenizers):
    tokenizer = tokenizers["sentencepiece-gguf"]
    tokens = tokenizer.encode("on and on", add_special_tokens=False)
    assert text_of(Detokenizer(tokenizer), tokens) == "on and on"
    assert text_of(Detokenizer(tokenizer, continues=True), tokens) == " on and on"
