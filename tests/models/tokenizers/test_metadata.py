from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arriero.errors import ModelLoadError
from arriero.models.architecture import DecoderConfig
from arriero.models.tokenizers.metadata import read_text_metadata
from arriero.models.tokenizers.tokenizer import TextMetadata

TOKENS = ["<unk>", "<s>", "</s>", "<|im_end|>", "<|eot_id|>", "a"]


@pytest.fixture
def gguf_metadata(
    tmp_path: Path, config: DecoderConfig, write_gguf: Callable[..., Path]
) -> Callable[[dict[str, Any]], TextMetadata]:
    def read(fields: dict[str, Any]) -> TextMetadata:
        defaults = {"tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1]}
        return read_text_metadata(write_gguf(tmp_path / "m.gguf", config, {}, {**defaults, **fields}))

    return read


def test_gguf_fields(gguf_metadata: Callable[..., TextMetadata]) -> None:
    metadata = gguf_metadata(
        {
            "tokenizer.chat_template": "{{ messages }}",
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.padding_token_id": 99,
            "tokenizer.ggml.add_bos_token": True,
        }
    )
    assert metadata == TextMetadata(
        chat_template="{{ messages }}",
        special_tokens={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        bos_token_id=1,
        end_token_ids=frozenset({2}),
        add_bos=True,
        context=256,
    )


def test_gguf_end_tokens_by_id_and_by_name(gguf_metadata: Callable[..., TextMetadata]) -> None:
    assert gguf_metadata({}).end_token_ids == frozenset()
    by_id = {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.eom_token_id": 4}
    assert gguf_metadata(by_id).end_token_ids == {2, 3, 4}
    # Only a control token ends an answer by its name; the same text as an ordinary token does not.
    by_name = {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.token_type": [2, 3, 3, 3, 1, 1]}
    assert gguf_metadata(by_name).end_token_ids == {2, 3}


def test_gguf_sentencepiece_ids_that_go_without_saying(gguf_metadata: Callable[..., TextMetadata]) -> None:
    metadata = gguf_metadata({"tokenizer.ggml.model": "llama"})
    assert metadata.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert metadata.bos_token_id == 1
    assert metadata.end_token_ids == {2}


@pytest.mark.parametrize(
    ("fields", "add_bos"),
    [
        ({"tokenizer.ggml.model": "llama"}, True),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_bos_token": False}, False),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe"}, True),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}, False),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.add_bos_token": True}, True),
    ],
)
def test_gguf_first_token(fields: dict[str, Any], add_bos: bool, gguf_metadata: Callable[..., TextMetadata]) -> None:
    assert gguf_metadata(fields).add_bos is add_bos


@pytest.mark.parametrize(
    "fields",
    [
        {"tokenizer.ggml.tokens": "no list"},
        {"tokenizer.ggml.tokens": [1, 2]},
        {"tokenizer.ggml.eos_token_id": "two"},
        {"tokenizer.chat_template": 3},
    ],
)
def test_gguf_fields_of_another_type_are_named(
    fields: dict[str, Any], gguf_metadata: Callable[..., TextMetadata]
) -> None:
    with pytest.raises(ModelLoadError, match=rf"m\.gguf: {next(iter(fields))} "):
        gguf_metadata(fields)


@pytest.fixture
def directory_metadata(tmp_path: Path) -> Callable[..., TextMetadata]:
    def read(files: dict[str, Any]) -> TextMetadata:
        for name, content in {"config.json": {"max_position_embeddings": 64}, **files}.items():
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return read_text_metadata(tmp_path)

    return read


def test_directory_without_anything(directory_metadata: Callable[..., TextMetadata]) -> None:
    assert directory_metadata({}) == TextMetadata(
        chat_template=None,
        special_tokens={},
        bos_token_id=None,
        end_token_ids=frozenset(),
        add_bos=None,
        context=64,
    )


def test_directory_end_tokens_of_every_file_count(directory_metadata: Callable[..., TextMetadata]) -> None:
    metadata = directory_metadata(
        {
            "config.json": {"eos_token_id": 2, "bos_token_id": 1},
            "generation_config.json": {"eos_token_id": [5, 6]},
            "tokenizer_config.json": {"eos_token": "<|im_end|>", "bos_token": {"content": "<s>"}, "pad_token": None},
            "tokenizer.json": {"added_tokens": [{"id": 7, "content": "<|im_end|>"}, {"id": 1, "content": "<s>"}]},
        }
    )
    assert metadata.end_token_ids == {2, 5, 6, 7}
    assert metadata.special_tokens == {"eos_token": "<|im_end|>", "bos_token": "<s>"}
    assert metadata.bos_token_id == 1


def test_directory_older_special_tokens(directory_metadata: Callable[..., TextMetadata]) -> None:
    files = {"tokenizer_config.json": {}, "special_tokens_map.json": {"unk_token": {"content": "<unk>"}}}
    assert directory_metadata(files).special_tokens == {"unk_token": "<unk>"}


def test_directory_template_as_text_list_and_file(directory_metadata: Callable[..., TextMetadata]) -> None:
    assert directory_metadata({"tokenizer_config.json": {"chat_template": "one"}}).chat_template == "one"
    named = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    assert directory_metadata({"tokenizer_config.json": {"chat_template": named}}).chat_template == "three"
    assert directory_metadata({"tokenizer_config.json": {"chat_template": named[:1]}}).chat_template is None
    assert directory_metadata({"chat_template.jinja": "fôur\n"}).chat_template == "fôur\n"


@pytest.mark.parametrize(
    "files",
    [
        {"generation_config.json": {"eos_token_id": "two"}},
        {"generation_config.json": {"eos_token_id": [1, None]}},
        {"tokenizer_config.json": {"chat_template": 3}},
        {"tokenizer_config.json": "{"},
        {"tokenizer_config.json": {"eos_token": "x"}, "tokenizer.json": {"added_tokens": 3}},
    ],
)
def test_directory_faults_name_the_file(files: dict[str, Any], directory_metadata: Callable[..., TextMetadata]) -> None:
    with pytest.raises(ModelLoadError, match=list(files)[-1]):
        directory_metadata(files)
