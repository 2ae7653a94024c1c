"""Every architecture's GGUF form is the same model as its directory form, which is held against transformers.

Names come from the map in the `gguf` package, keys from its writer; what llama.cpp stores otherwise (rows of queries
and keys in another order, norms with the one that Gemma adds) is done here as its conversion does it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from arriero.errors import ModelLoadError
from arriero.models.checkpoint import open_checkpoint
from arriero.models.decoders.directory import DirectoryCheckpoint
from arriero.models.decoders.gguf_families import ARCHITECTURES
from arriero.models.decoders.layout import tensor_shapes
from models.conftest import permuted
from references import tiny_families

FUSED = {
    "phi3": {
        "model.layers.{}.self_attn.qkv_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "model.layers.{}.mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
    }
}
PERMUTED = ("llama", "granite", "smollm3")
LONGROPE = tiny_families.CASES["phi3/longrope"]["rope_scaling"]

# Changes make of a case what the file format can say: llama.cpp scales Gemma's queries by the size of a head.
MODELS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("gemma", "gemma/legacy_activation", {}, {}),
    (
        "gemma2",
        "gemma2/soft_caps",
        {"query_pre_attn_scalar": 16},
        {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "attention.sliding_window": 24},
    ),
    (
        "gemma3",
        "gemma3/scaled",
        {"query_pre_attn_scalar": 16},
        {
            "attention.sliding_window": 24,
            "final_logit_softcapping": 3.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
    (
        "granite",
        "granite/tied",
        {},
        {"attention.scale": 0.3, "embedding_scale": 3.0, "residual_scale": 0.4, "logit_scale": 0.7},
    ),
    ("llama", "llama/dynamic", {}, {}),
    ("olmo2", "olmo2/untied", {}, {}),
    (
        "olmo2",
        "olmo3/window",
        {},
        {"attention.sliding_window": 24, "attention.sliding_window_pattern": [True, True, True, False]},
    ),
    ("phi3", "phi3/tied", {}, {"attention.sliding_window": 0}),
    ("phi3", "phi3/window", {}, {"attention.sliding_window": 24}),
    (
        "phi3",
        "phi3/partial_rotary",
        {},
        {
            "rope.dimension_count": 16,
            "rope.scaling.original_context_length": 256,
            "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(4) / np.log(256))),
        },
    ),
    ("qwen2", "qwen2/untied", {}, {}),
    ("qwen2", "qwen2/tied", {}, {}),
    ("qwen3", "qwen3/untied", {}, {}),
    ("seed_oss", "seed_oss/defaults", {}, {}),
    ("smollm3", "smollm3/tied", {}, {}),
]


def write_gguf(path: Path, name: str, source: DirectoryCheckpoint, fields: dict[str, Any]) -> Path:
    """The model of a directory as the file that llama.cpp would make of it; fields that are None are left out."""
    config = source.config
    writer = gguf.GGUFWriter(None, name)
    writer.add_type("model")
    own = {
        "block_count": config.num_layers,
        "context_length": tiny_families.CASES["phi3/longrope"]["max_position_embeddings"]
        if "rope.scaling.attn_factor" in fields
        else config.context,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "rope.freq_base": config.rope_theta,
        "vocab_size": config.vocab_size,
    }
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in {**own, **fields}.items():
        if value is not None:
            add[type(value)](f"{name}.{key}", value)
    for tensor, values in stored_tensors(name, source).items():
        writer.add_tensor(tensor, values)
    if "rope.scaling.attn_factor" in fields:
        for length in ("short", "long"):
            writer.add_tensor(f"rope_factors_{length}.weight", np.array(LONGROPE[f"{length}_factor"], np.float32))
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored_tensors(name: str, source: DirectoryCheckpoint) -> dict[str, Any]:
    config = source.config
    tensors = {tensor: source.tensor(tensor) for tensor, _ in tensor_shapes(config)}
    if name in PERMUTED:
        heads = {"q_proj.weight": config.num_heads, "k_proj.weight": config.num_kv_heads}
        for tensor in list(tensors):
            for ending, count in heads.items():
                if tensor.endswith(ending):
                    tensors[tensor] = permuted(tensors[tensor], count)
    for whole, parts in FUSED.get(name, {}).items():
        for layer in range(config.num_layers):
            pieces = [tensors.pop(f"model.layers.{layer}.{part}.weight") for part in parts]
            tensors[f"{whole.format(layer)}.weight"] = np.concatenate(pieces)
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(architecture, config.num_layers)
    return {names.get_name(tensor, (".weight", ".bias")): values for tensor, values in tensors.items()}


def comparable(value: Any) -> Any:
    """A configuration's values with numbers rounded, as GGUF holds them in float32."""
    if isinstance(value, dict):
        return {key: comparable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [comparable(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


@pytest.mark.parametrize(("name", "case", "changes", "fields"), MODELS, ids=[f"{m[0]}-{m[1]}" for m in MODELS])
def test_the_file_is_the_same_model_as_the_directory(
    name: str, case: str, changes: dict[str, Any], fields: dict[str, Any], tmp_path: Path
) -> None:
    directory = open_checkpoint(tiny_families.write(case, tmp_path, **changes))
    assert isinstance(directory, DirectoryCheckpoint)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", name, directory, fields))
    ours, theirs = (
        comparable(
            {
                **dataclasses.asdict(config),
                "family": "",  # OLMo 3 is an OLMo 2 here
                "attention_scale": config.attention_scale or config.head_dim**-0.5,
            }
        )
        for config in (checkpoint.config, directory.config)
    )
    assert ours == theirs
    for tensor, _ in tensor_shapes(directory.config):
        np.testing.assert_array_equal(checkpoint.tensor(tensor), directory.tensor(tensor), err_msg=tensor)


def test_every_architecture_is_tried() -> None:
    assert {name for name, *_ in MODELS} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("name", "case", "fields", "message"),
    [
        (
            "gemma2",
            "gemma2/defaults",
            {"attention.sliding_window_pattern": [True]},
            "list of 1, expected one number",
        ),
        ("gemma3", "gemma3/scaled", {}, "gemma3.attention.sliding_window is None, expected one int"),
        ("phi3", "phi3/tied", {"rope.scaling.type": "longrope"}, "of type 'longrope'"),
        ("phi3", "phi3/tied", {"rope.scaling.attn_factor": 1.5}, "expected one int"),
        ("qwen2", "qwen2/tied", {"expert_count": 8}, "qwen2.expert_count is 8, which asks for something"),
        ("qwen3", "qwen3/tied", {"pooling_type": 3}, "qwen3.pooling_type is 3, which asks for something"),
    ],
)
def test_what_is_not_computed_is_refused(
    name: str, case: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    directory = open_checkpoint(tiny_families.write(case, tmp_path))
    assert isinstance(directory, DirectoryCheckpoint)
    with pytest.raises(ModelLoadError, match=message):
        open_checkpoint(write_gguf(tmp_path / "model.gguf", name, directory, fields))


def test_a_granite_without_positions(tmp_path: Path) -> None:
    directory = open_checkpoint(tiny_families.write("granite/tied", tmp_path))
    assert isinstance(directory, DirectoryCheckpoint)
    path = write_gguf(tmp_path / "model.gguf", "granite", directory, {"rope.scaling.finetuned": False})
    assert open_checkpoint(path).config.layers_without_positions == (0, 1, 2, 3)


def test_the_largest_gemma_has_another_scale(tmp_path: Path) -> None:
    """As in llama.cpp, which tells it by its number of layers."""
    directory = open_checkpoint(tiny_families.write("gemma2/defaults", tmp_path, num_hidden_layers=46))
    assert isinstance(directory, DirectoryCheckpoint)
    path = write_gguf(tmp_path / "model.gguf", "gemma2", directory, {})
    assert open_checkpoint(path).config.attention_scale == pytest.approx((64 / 4) ** -0.5)
