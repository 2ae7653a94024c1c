"""Weights and rotary frequencies as transformers reads them from the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from arriero.models.architecture import DecoderConfig
from arriero.models.checkpoint import open_checkpoint
from arriero.models.decoders.layout import tensor_shapes
from arriero.models.decoders.rope import inverse_frequencies
from arriero.models.sources.catalog import DEFAULT_MODEL
from arriero.models.sources.download import fetch


def test_every_tensor_of_the_catalog_s_gguf_file() -> None:
    path = fetch(DEFAULT_MODEL, platformdirs.user_cache_path("arriero"))
    # What `from_pretrained(gguf_file=...)` calls; that itself asks for one more package, accelerate.
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig.from_pretrained(path.parent, gguf_file=path.name))
    expected = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    checkpoint = open_checkpoint(path)
    assert {name for name, _ in tensor_shapes(checkpoint.config)} == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(checkpoint.tensor(name), values.numpy(), rtol=0, atol=1e-6, err_msg=name)
    config = model.config
    assert checkpoint.config == DecoderConfig(
        family=config.model_type,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        context=config.max_position_embeddings,
        norm_epsilon=config.rms_norm_eps,
        rope_theta=config.rope_parameters["rope_theta"],
        tie_embeddings=config.tie_word_embeddings,
    )


ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 100000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
    {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
]


@pytest.mark.parametrize("rope", ROPES, ids=[rope["rope_type"] for rope in ROPES])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_directories_that_transformers_saved(
    rope: dict[str, Any], tied: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        rope_parameters=rope,
        tie_word_embeddings=tied,
        attention_bias=True,
        mlp_bias=True,
    )
    model = LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.tie_embeddings is tied
    expected = model.state_dict()
    for name, _ in tensor_shapes(checkpoint.config):
        np.testing.assert_array_equal(checkpoint.tensor(name), expected[name].float().numpy())
    frequencies = LlamaRotaryEmbedding(config).inv_freq.numpy()
    np.testing.assert_allclose(inverse_frequencies(checkpoint.config), frequencies, rtol=1e-6)
