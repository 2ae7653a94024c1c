"""Directories as people bring them: a tiny model saved by transformers, with a tokenizer made by `tokenizers`."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

WORDS = "the a cat dog sat ran on under big small red mat tree and then home fast slow translate summarize"


def gpt2_directory(path: Path) -> Path:
    """A decoder that only torch computes, with bytes as tokens; its answers end by themselves seldom."""
    backend = tokenizers.Tokenizer(models.BPE({each: id for id, each in enumerate(_bytes())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    end = backend.token_to_id("<|endoftext|>")
    torch.manual_seed(1)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=backend.get_vocab_size(),
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            initializer_range=0.2,
            bos_token_id=end,
            eos_token_id=end,
        )
    )
    return _save(path, model, backend, {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"})


def t5_directory(path: Path) -> Path:
    """An encoder-decoder whose vocabulary is a unigram model's, as T5's, with the end behind every text."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS.split()]
    pieces += [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyz:.,"]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    backend.normalizer = normalizers.Nmt()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    backend.add_special_tokens(["<pad>", "</s>", "<unk>"])
    torch.manual_seed(3)
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=backend.get_vocab_size(),
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.5)
    return _save(path, model, backend, {"eos_token": "</s>", "pad_token": "<pad>", "model_max_length": 64})


def _save(path: Path, model: transformers.PreTrainedModel, backend: tokenizers.Tokenizer, config: dict) -> Path:
    model.save_pretrained(path)
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def _bytes() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())
