"""Every style on a vocabulary of bytes that has its marks."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from arriero.models.tokenizers.tokenizer import TextMetadata, Tokenizer, load_tokenizer
from arriero.text.infill import STYLES, Infill, infill_of


def tokenizer_with(*marks: str, bos: str | None = None) -> Tokenizer:
    characters = sorted(ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(BPE({each: id for id, each in enumerate(characters)}, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([*marks, *([bos] if bos else [])])
    if bos:
        id = backend.token_to_id(bos)
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, id)]
        )
    metadata = TextMetadata(
        chat_template=None,
        special_tokens={"bos_token": bos} if bos else {},
        bos_token_id=None,
        end_token_ids=frozenset(),
        add_bos=None,
        context=None,
    )
    return Tokenizer(Path("test"), json.loads(backend.to_str()), metadata)


@pytest.mark.parametrize("style", STYLES, ids=[style[0] for style in STYLES])
def test_the_middle_comes_last(style: tuple[str, str, str]) -> None:
    tokenizer = tokenizer_with(*style)
    infill = infill_of(tokenizer)
    assert infill
    tokens = infill.encode("def f():\n", "\nreturn x")
    before, after, middle = style
    assert tokenizer.decode(tokens, skip_special_tokens=False) == f"{before}def f():\n{after}\nreturn x{middle}"
    assert [token for token in tokens if tokenizer.is_special(token)] == [infill.prefix, infill.suffix, infill.middle]


def test_a_beginning_of_sequence_comes_first() -> None:
    tokenizer = tokenizer_with(*STYLES[4], bos="<s>")
    infill = infill_of(tokenizer)
    assert infill
    assert infill.encode("a", "b")[:2] == [tokenizer.bos_token_id, infill.prefix]


def test_marks_that_a_user_types_stay_text() -> None:
    tokenizer = tokenizer_with(*STYLES[1])
    infill = infill_of(tokenizer)
    assert infill
    tokens = infill.encode("<|fim_middle|>", "<|fim_suffix|>")
    assert len([token for token in tokens if tokenizer.is_special(token)]) == 3


def test_a_prompt_may_be_tokens() -> None:
    tokenizer = tokenizer_with(*STYLES[2])
    infill = infill_of(tokenizer)
    assert infill
    assert infill.encode(tokenizer.encode("ab"), "c") == infill.encode("ab", "c")


def test_the_ends_of_a_middle_are_known() -> None:
    tokenizer = tokenizer_with(*STYLES[1], "<|endoftext|>", "<|fim_pad|>")
    infill = infill_of(tokenizer)
    assert infill
    assert infill.end_token_ids == {tokenizer.control_tokens[each] for each in ("<|endoftext|>", "<|fim_pad|>")}


def test_a_model_without_the_marks_cannot_do_it() -> None:
    assert infill_of(tokenizer_with("<fim_prefix>", "<fim_suffix>")) is None


def test_no_space_is_put_before_a_suffix(vocabularies: dict[str, Path]) -> None:
    spaced = {name: load_tokenizer(path) for name, path in vocabularies.items()}
    spaced = {name: tokenizer for name, tokenizer in spaced.items() if tokenizer.adds_space_prefix}
    assert spaced
    for name, tokenizer in spaced.items():
        infill = Infill(tokenizer, -1, -2, -3, frozenset())  # only the texts between the marks matter here
        tokens = infill.encode("", "abc")
        suffix = tokens[tokens.index(infill.suffix) + 1 : -1]
        assert b"".join(map(tokenizer.token_bytes, suffix)) == b"abc", name
