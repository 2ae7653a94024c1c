from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.checkpoint import open_checkpoint
from arriero.models.decoders.families import ARCHITECTURES
from references import tiny_families
from references.tiny_families import CASES


def test_every_architecture_has_a_case_with_transformers_logits() -> None:
    assert {settings["architectures"][0] for settings in CASES.values()} == set(ARCHITECTURES)


def test_the_page_of_models_is_up_to_date() -> None:
    subprocess.run([sys.executable, "scripts/models_page.py", "--check"], check=True)


def changed(case: str, directory: Path, changes: dict[str, Any]) -> Path:
    """The case's directory with some settings changed after its weights were made."""
    tiny_families.write(case, directory)
    (directory / "config.json").write_text(json.dumps({**CASES[case], **changes}))
    return directory


TYPES = ["sliding_attention"] * 3
NOT_COMPUTED: list[tuple[str, dict[str, Any], str]] = [
    ("mistral/window", {"architectures": ["MixtralForCausalLM"]}, "the architecture is 'MixtralForCausalLM'"),
    ("mistral/window", {"hidden_act": "relu2"}, "hidden_act is 'relu2', which asks for something"),
    ("qwen2/untied", {"add_cross_attention": True}, "add_cross_attention is True"),
    ("qwen2/untied", {"layer_types": ["linear_attention", *TYPES]}, "attention of type 'linear_attention'"),
    ("qwen3/tied", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("gemma2/defaults", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("gemma3/scaled", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    (
        "gemma3/rope_parameters",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "rope_type is 'linear'",
    ),
    ("gemma3/rope_parameters", {"rope_parameters": {"full_attention": {"rope_type": "mrope"}}}, "of type 'mrope'"),
    ("internlm3/biases", {"bias": False}, "qkv_bias and bias differ"),
]
DAMAGED: list[tuple[str, dict[str, Any], str]] = [
    ("mistral/window", {"sliding_window": 0}, "a sliding window has 0 tokens"),
    ("mistral/window", {"sliding_window": "4k"}, "sliding_window is '4k', expected an integer"),
    ("qwen2/untied", {"layer_types": TYPES}, "layer_types is .* expected one for each of 4 layers"),
    ("qwen2/untied", {"layer_types": [*TYPES, "full_attention"]}, "sliding_window is not set"),
    ("smollm3/listed", {"no_rope_layers": [1, 0]}, "expected 0 or 1 for each of 4 layers"),
    ("gemma2/defaults", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0, expected a positive number"),
    ("gemma2/defaults", {"final_logit_softcapping": -1}, "logits_softcap is -1.0"),
    ("gemma3/rope_parameters", {"rope_parameters": {"rope_theta": 1e4}}, "expected one object each for full_attention"),
    ("granite/tied", {"logits_scaling": 0}, "logits_scale is 0.0, expected a positive number"),
    ("phi3/longrope", {"partial_rotary_factor": 0.4}, "rope scaling has 8 factors, expected 3"),
    ("phi3/longrope", {"rope_scaling": {"type": "longrope"}}, "longrope has no list of positive numbers"),
    ("phi3/tied", {"partial_rotary_factor": 0.2}, "positions turn 3; expected an even number"),
    ("llama/yarn", {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": "x"}}, "beta_fast = 'x'"),
    ("llama/yarn", {"rope_theta": 1.0}, "yarn rope scaling needs a rope_theta above 1"),
]


@pytest.mark.parametrize(("case", "changes", "message"), NOT_COMPUTED, ids=[message for *_, message in NOT_COMPUTED])
def test_what_is_not_computed_is_unsupported(case: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        open_checkpoint(changed(case, tmp_path, changes))


@pytest.mark.parametrize(("case", "changes", "message"), DAMAGED, ids=[message for *_, message in DAMAGED])
def test_settings_that_cannot_be_are_damage(case: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=message) as raised:
        open_checkpoint(changed(case, tmp_path, changes))
    assert not isinstance(raised.value, UnsupportedModel)


def test_tensors_that_are_stored_as_one_are_read_as_their_parts(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_families.write("phi3/tied", tmp_path))
    whole = load_file(tmp_path / "model.safetensors")["model.layers.2.self_attn.qkv_proj.weight"]
    parts = [checkpoint.tensor(f"model.layers.2.self_attn.{part}_proj.weight") for part in "qkv"]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert [len(part) for part in parts] == [64, 32, 32]


def test_a_fused_tensor_with_too_few_rows_is_named(tmp_path: Path) -> None:
    tiny_families.write("phi3/tied", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.gate_up_proj.weight"
    save_file({**tensors, name: tensors[name][:-1]}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=rf"{name} has shape \[191, 64\], the configuration implies 192 rows"):
        open_checkpoint(tmp_path)


def test_norms_of_gemma_are_the_factors_that_they_apply(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_families.write("gemma3/scaled", tmp_path))
    stored = load_file(tmp_path / "model.safetensors")
    for name in ("model.norm.weight", "model.layers.0.self_attn.q_norm.weight"):
        np.testing.assert_array_equal(checkpoint.tensor(name), stored[name] + np.float32(1))


def test_parts_that_text_does_not_pass_through_are_left_out(tmp_path: Path) -> None:
    tiny_families.write("gemma3/with_images", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    image = {"vision_tower.vision_model.post_layernorm.weight": np.ones(16, np.float32)}
    save_file({**tensors, **image}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert not any(name in checkpoint for name in image)
    # As transformers has saved it since its version 5.
    renamed = {name.replace("language_model.model.", "model.language_model."): v for name, v in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    np.testing.assert_array_equal(open_checkpoint(tmp_path).tensor(name), checkpoint.tensor(name))
    save_file({**tensors, "audio_tower.weight": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"tensor audio_tower\.weight has no place"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("case", "context"), [("phi3/longrope", 256), ("phi3/tied", 256), ("llama/dynamic", 256), ("llama/yarn", 256)]
)
def test_positions_that_depend_on_the_length_limit_the_context(case: str, context: int, tmp_path: Path) -> None:
    """phi3/longrope was stretched to 1024; see `arriero.models.decoders.rope` for why only 256 of them are computed."""
    assert open_checkpoint(tiny_families.write(case, tmp_path)).config.context == context
