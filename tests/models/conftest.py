"""Small models on disk, in both containers, made from the same random weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from arriero.models.architecture import DecoderConfig
from arriero.models.decoders.layout import tensor_shapes

Weights = dict[str, NDArray[np.float32]]

LAYER_MODULES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture
def config() -> DecoderConfig:
    return DecoderConfig(
        family="llama",
        num_layers=2,
        hidden_size=32,
        intermediate_size=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        vocab_size=48,
        context=256,
        norm_epsilon=float(np.float32(1e-5)),
        rope_theta=10000.0,
    )


@pytest.fixture
def make_weights() -> Callable[[DecoderConfig], Weights]:
    def make(config: DecoderConfig) -> Weights:
        random = np.random.default_rng(7)
        return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in tensor_shapes(config)}

    return make


def gguf_name(name: str) -> str:
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{LAYER_MODULES[module]}.{kind}"


def permuted(values: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """llama.cpp's order of a head's rows: element j of the first half, then element j of the second half."""
    size = len(values) // num_heads
    order = [
        head * size + half * (size // 2) + pair
        for head in range(num_heads)
        for pair in range(size // 2)
        for half in range(2)
    ]
    return values[order]


@pytest.fixture
def write_gguf() -> Callable[..., Path]:
    def write(
        path: Path,
        config: DecoderConfig,
        weights: Weights,
        fields: Mapping[str, Any] | None = None,
        extra: Mapping[str, NDArray[Any]] | None = None,
        types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    ) -> Path:
        """`fields` and `extra` go by their names in the file; a field that is None is left out."""
        values: dict[str, Any] = {
            "general.type": "model",
            "llama.block_count": config.num_layers,
            "llama.context_length": config.context,
            "llama.embedding_length": config.hidden_size,
            "llama.feed_forward_length": config.intermediate_size,
            "llama.attention.head_count": config.num_heads,
            "llama.attention.head_count_kv": config.num_kv_heads,
            "llama.attention.layer_norm_rms_epsilon": config.norm_epsilon,
            "llama.rope.freq_base": config.rope_theta,
            "llama.vocab_size": config.vocab_size,
            **(fields or {}),
        }
        writer = gguf.GGUFWriter(None, str(values.pop("general.architecture", "llama")))
        for key, value in values.items():
            add_field(writer, key, value)
        heads = {"self_attn.q_proj": config.num_heads, "self_attn.k_proj": config.num_kv_heads}
        for name, tensor in weights.items():
            module = name.split(".", 3)[-1].rpartition(".")[0]
            data = permuted(tensor, heads[module]) if module in heads else tensor
            kind = (types or {}).get(name, gguf.GGMLQuantizationType.F32)
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(data, kind), raw_dtype=kind)
        for name, data in (extra or {}).items():
            writer.add_tensor(name, data)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    if value is not None:
        add[type(value)](key, value)


@pytest.fixture
def settings(config: DecoderConfig) -> dict[str, Any]:
    """config.json of the small model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "torch_dtype": "float32",
    }


@pytest.fixture
def write_directory() -> Callable[..., Path]:
    def write(path: Path, settings: Mapping[str, Any], weights: Mapping[str, Any]) -> Path:
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps(settings))
        save_file(dict(weights), path / "model.safetensors")
        return path

    return write


@pytest.fixture
def tied(config: DecoderConfig) -> DecoderConfig:
    return replace(config, tie_embeddings=True)
