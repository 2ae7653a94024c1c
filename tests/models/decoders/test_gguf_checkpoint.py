from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arriero.errors import ModelLoadError
from arriero.models.architecture import DecoderConfig
from arriero.models.checkpoint import open_checkpoint
from arriero.models.decoders.gguf_checkpoint import GGUFCheckpoint
from arriero.models.decoders.layout import tensor_shapes


def test_tensors_and_configuration_come_back(
    tmp_path: Path, config: DecoderConfig, make_weights: Callable[..., Any], write_gguf: Callable[..., Path]
) -> None:
    weights = make_weights(config)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", config, weights))
    assert checkpoint.config == config
    for name, shape in tensor_shapes(config):
        assert name in checkpoint
        assert checkpoint.tensor(name).shape == shape
        np.testing.assert_array_equal(checkpoint.tensor(name), weights[name])
    assert "model.layers.2.input_layernorm.weight" not in checkpoint
    with pytest.raises(ModelLoadError, match=r"model\.gguf: has no tensor model\.layers\.2"):
        checkpoint.tensor("model.layers.2.input_layernorm.weight")


def test_without_output_weights_the_embeddings_are_tied(
    tmp_path: Path, tied: DecoderConfig, make_weights: Callable[..., Any], write_gguf: Callable[..., Path]
) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", tied, make_weights(tied)))
    assert checkpoint.config == tied
    assert "lm_head.weight" not in checkpoint


def test_biases_are_found_and_permuted_like_their_weights(
    tmp_path: Path, config: DecoderConfig, make_weights: Callable[..., Any], write_gguf: Callable[..., Path]
) -> None:
    config = replace(config, attention_bias=True, output_bias=True, mlp_bias=True)
    weights = make_weights(config)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", config, weights))
    assert checkpoint.config == config
    for name in weights:
        np.testing.assert_array_equal(checkpoint.tensor(name), weights[name])


def test_quantised_tensors_are_permuted_after_decoding(
    tmp_path: Path, config: DecoderConfig, make_weights: Callable[..., Any], write_gguf: Callable[..., Path]
) -> None:
    weights = make_weights(config)
    types = {name: gguf.GGMLQuantizationType.Q8_0 for name, values in weights.items() if values.ndim == 2}
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "model.gguf", config, weights, types=types))
    assert checkpoint.source_format == "Q8_0"
    for name, values in weights.items():
        np.testing.assert_allclose(checkpoint.tensor(name), values, atol=np.abs(values).max() / 127)


def test_defaults_stand_in_for_absent_fields(
    tmp_path: Path, config: DecoderConfig, make_weights: Callable[..., Any], write_gguf: Callable[..., Path]
) -> None:
    config = replace(config, num_kv_heads=4)
    fields = {
        "llama.attention.head_count_kv": None,
        "llama.rope.freq_base": None,
        "llama.vocab_size": None,
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(config.vocab_size)],
    }
    path = write_gguf(tmp_path / "model.gguf", config, make_weights(config), fields)
    assert open_checkpoint(path).config == config


def test_heads_may_be_of_another_size_than_their_share(
    tmp_path: Path, config: DecoderConfig, make_weights: Callable[..., Any], write_gguf: Callable[..., Path]
) -> None:
    config = replace(config, head_dim=16)
    fields = {
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.rope.dimension_count": 16,
    }
    path = write_gguf(tmp_path / "model.gguf", config, make_weights(config), fields)
    assert open_checkpoint(path).config == config


@pytest.mark.parametrize(
    ("fields", "scaling"),
    [
        ({"llama.rope.scaling.type": "none"}, None),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        ({"llama.rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"llama.rope.scaling.factor": 0.0}, None),
    ],
)
def test_linear_rope_scaling(
    fields: dict[str, Any],
    scaling: dict[str, Any] | None,
    tmp_path: Path,
    config: DecoderConfig,
    make_weights: Callable[..., Any],
    write_gguf: Callable[..., Path],
) -> None:
    path = write_gguf(tmp_path / "model.gguf", config, make_weights(config), fields)
    assert open_checkpoint(path).config.rope_scaling == scaling


def test_rope_factors_become_a_scaling(
    tmp_path: Path, config: DecoderConfig, make_weights: Callable[..., Any], write_gguf: Callable[..., Path]
) -> None:
    factors = np.array([1.0, 1.0, 2.5, 8.0], dtype=np.float32)
    path = write_gguf(tmp_path / "model.gguf", config, make_weights(config), extra={"rope_freqs.weight": factors})
    scaling = open_checkpoint(path).config.rope_scaling
    assert scaling == {"rope_type": "factors", "factors": (1.0, 1.0, 2.5, 8.0)}


REFUSED_FIELDS = [
    ({"general.architecture": "mamba"}, "architecture is 'mamba', Arriero reads .* llama"),
    ({"general.type": "adapter"}, "type 'adapter'"),
    ({"split.count": 3}, "one of 3 parts"),
    ({"llama.block_count": None}, "llama.block_count is None, expected one int"),
    ({"llama.block_count": "two"}, "llama.block_count is 'two', expected one int"),
    ({"llama.block_count": 0}, "num_layers is 0, expected at least 1"),
    ({"llama.block_count": 3}, "tensor model.layers.2.input_layernorm.weight is missing"),
    ({"llama.block_count": 1}, "tensor model.layers.1.input_layernorm.weight has no place"),
    ({"llama.block_count": 2**32 - 1}, "tensor model.layers.2.input_layernorm.weight is missing"),
    ({"llama.attention.head_count": [4, 4]}, "llama.attention.head_count is a list of 2"),
    ({"llama.attention.head_count_kv": 3}, "4 attention heads cannot share 3"),
    ({"llama.attention.head_count_kv": 1}, r"k_proj.weight has shape \[16, 32\], the configuration implies \[8, 32\]"),
    ({"llama.rope.dimension_count": 4}, "rope.dimension_count is 4, expected the head size 8"),
    ({"llama.attention.value_length": 4}, "attention.value_length is 4, expected the head size 8"),
    ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "norm_epsilon is 0.0, expected a positive number"),
    ({"llama.vocab_size": 47}, r"embed_tokens.weight has shape \[48, 32\]"),
    ({"llama.vocab_size": None}, "llama.vocab_size is None"),
    ({"llama.expert_count": 8}, "llama.expert_count is 8, which asks for something"),
    ({"llama.attention.sliding_window": 4096}, "llama.attention.sliding_window is 4096"),
    ({"llama.logit_scale": 0.5}, "llama.logit_scale is 0.5"),
    ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "type 'yarn', Arriero computes"),
    ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0}, "factor = 0.0, expected a positive"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED_FIELDS, ids=[message for _, message in REFUSED_FIELDS])
def test_what_is_not_computed_is_refused(
    fields: dict[str, Any],
    message: str,
    tmp_path: Path,
    config: DecoderConfig,
    make_weights: Callable[..., Any],
    write_gguf: Callable[..., Path],
) -> None:
    path = write_gguf(tmp_path / "model.gguf", config, make_weights(config), fields)
    with pytest.raises(ModelLoadError, match=rf"model\.gguf: .*{message}"):
        open_checkpoint(path)


def test_harmless_fields_pass(
    tmp_path: Path, config: DecoderConfig, make_weights: Callable[..., Any], write_gguf: Callable[..., Path]
) -> None:
    fields = {
        "llama.expert_count": 0,
        "llama.attention.causal": True,
        "llama.tensor_data_layout": "Meta AI original pth",
    }
    assert open_checkpoint(write_gguf(tmp_path / "model.gguf", config, make_weights(config), fields)).config == config


REFUSED_TENSORS = [
    ("blk.0.attn_q_norm.weight", (8,), "blk.0.attn_q_norm.weight has no place in a llama model"),
    ("blk.0.ffn_gate_inp.weight", (4, 32), "ffn_gate_inp.weight has no place"),
    ("blk.0.attn_q.bias", (32,), "self_attn.k_proj.bias is missing"),
    ("blk.1.attn_q.bias", (32,), "model.layers.1.self_attn.q_proj.bias has no place"),
    ("rope_freqs.weight", (3,), r"rope_freqs.weight has shape \[3\], expected \[4\] positive factors"),
    ("rope_freqs.weight", (4,), "rope_freqs.weight"),
]


@pytest.mark.parametrize(("name", "shape", "message"), REFUSED_TENSORS)
def test_tensors_that_change_the_answer_are_refused(
    name: str,
    shape: tuple[int, ...],
    message: str,
    tmp_path: Path,
    config: DecoderConfig,
    make_weights: Callable[..., Any],
    write_gguf: Callable[..., Path],
) -> None:
    extra = {name: np.zeros(shape, dtype=np.float32)}
    path = write_gguf(tmp_path / "model.gguf", config, make_weights(config), extra=extra)
    with pytest.raises(ModelLoadError, match=rf"model\.gguf: .*{message}"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_missing_and_wrongly_shaped_tensors_are_named(
    name: str, tmp_path: Path, config: DecoderConfig, make_weights: Callable[..., Any], write_gguf: Callable[..., Path]
) -> None:
    weights = make_weights(config)
    wrong = {**weights, name: weights[name][:-1]}
    with pytest.raises(ModelLoadError, match=rf"tensor {name} has shape"):
        open_checkpoint(write_gguf(tmp_path / "wrong.gguf", config, wrong))
    del weights[name]
    with pytest.raises(ModelLoadError, match=rf"tensor {name} is missing, expected shape"):
        open_checkpoint(write_gguf(tmp_path / "missing.gguf", config, weights))


def test_identity_changes_with_the_file(
    tmp_path: Path, config: DecoderConfig, make_weights: Callable[..., Any], write_gguf: Callable[..., Path]
) -> None:
    path = write_gguf(tmp_path / "model.gguf", config, make_weights(config))
    first = open_checkpoint(path).identity
    assert open_checkpoint(path).identity == first
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    touched = open_checkpoint(path).identity
    assert touched != first
    renamed = path.rename(tmp_path / "other.gguf")
    assert open_checkpoint(renamed).identity not in (first, touched)


def test_identity_changes_with_the_configuration(
    tmp_path: Path, config: DecoderConfig, make_weights: Callable[..., Any], write_gguf: Callable[..., Path]
) -> None:
    identities = set()
    for theta in (10000.0, 20000.0):
        path = write_gguf(tmp_path / "model.gguf", replace(config, rope_theta=theta), make_weights(config))
        os.utime(path, ns=(0, 10**18))
        identities.add(open_checkpoint(path).identity)
    assert len(identities) == 2


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=3), st.integers(0, 1 << 16))
def test_damage_never_gives_another_error(
    tmp_path: Path,
    config: DecoderConfig,
    make_weights: Callable[..., Any],
    write_gguf: Callable[..., Path],
    damage: list[tuple[int, int]],
    length: int,
) -> None:
    path = tmp_path / "model.gguf"
    if not path.exists():
        write_gguf(path, config, make_weights(config))
    content = bytearray(path.read_bytes())
    for position, byte in damage:
        content[position % 4096] = byte  # most of the header, where every byte matters
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content[: length or None])
    with suppress(ModelLoadError):
        checkpoint = open_checkpoint(damaged)
        for name, shape in tensor_shapes(checkpoint.config):
            assert checkpoint.tensor(name).shape == shape


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="there is no such file or directory"):
        open_checkpoint(tmp_path / "nothing")
