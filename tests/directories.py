"""Hugging Face directories of small random models."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from safetensors.numpy import save_file
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from arriero.models.architecture import DecoderConfig
from references.tiny_models import random_checkpoint

CONTEXT = 1024


def write_model(directory: Path, config: DecoderConfig) -> Path:
    """The `random_checkpoint` of a plain LLaMA configuration, without a tokenizer, with a context of `CONTEXT`."""
    directory.mkdir(exist_ok=True)
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": config.norm_epsilon,
    }
    (directory / "config.json").write_text(json.dumps(settings))
    save_file(dict(random_checkpoint(config).tensors), directory / "model.safetensors", {"format": "pt"})
    return directory


def write_tokenizer(directory: Path, size: int, template: str | None = None) -> Path:
    """A tokenizer of bytes and of as many made-up words as it takes."""
    directory.mkdir(exist_ok=True)
    backend = tokenizers.Tokenizer(BPE({each: id for id, each in enumerate(sorted(ByteLevel.alphabet()))}, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    backend.add_tokens([f"¶{number}" for number in range(size - backend.get_vocab_size())])
    backend.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "</s>"} | ({"chat_template": template} if template else {})
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory
