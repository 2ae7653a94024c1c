"""A Hugging Face directory of a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from arriero.models.architecture import DecoderConfig
from arriero.models.decoders.layout import tensor_shapes

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "


def write_directory(path: Path) -> Path:
    """A LLaMA of one layer with random weights, whose tokens are bytes; it ends an answer with `<end>`."""
    path.mkdir()
    backend = tokenizers.Tokenizer(BPE({each: id for id, each in enumerate(sorted(ByteLevel.alphabet()))}, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    backend.save(str(path / "tokenizer.json"))
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": backend.get_vocab_size(),
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "eos_token_id": backend.token_to_id("<end>"),
        "tie_word_embeddings": False,
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "chat_template": TEMPLATE}))
    shapes = tensor_shapes(
        DecoderConfig(
            family="llama",
            num_layers=1,
            hidden_size=64,
            intermediate_size=64,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            vocab_size=backend.get_vocab_size(),
            context=128,
            norm_epsilon=1e-5,
            rope_theta=10000.0,
        )
    )
    random = np.random.default_rng(1)
    weights = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes}
    save_file(weights, path / "model.safetensors")
    return path
