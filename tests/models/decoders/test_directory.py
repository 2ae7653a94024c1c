from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.architecture import DecoderConfig
from arriero.models.checkpoint import open_checkpoint
from arriero.models.decoders.directory import DirectoryCheckpoint
from arriero.models.decoders.layout import tensor_shapes

Settings = dict[str, Any]
Write = Callable[..., Path]
Make = Callable[..., Any]

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_tensors_and_configuration_come_back(
    tmp_path: Path, config: DecoderConfig, settings: Settings, make_weights: Make, write_directory: Write
) -> None:
    weights = make_weights(config)
    checkpoint = open_checkpoint(write_directory(tmp_path / "model", settings, weights))
    assert checkpoint.config == config
    for name, shape in tensor_shapes(config):
        assert name in checkpoint
        assert checkpoint.tensor(name).shape == shape
        np.testing.assert_array_equal(checkpoint.tensor(name), weights[name])
    with pytest.raises(ModelLoadError, match=r"model: has no tensor model\.layers\.2"):
        checkpoint.tensor("model.layers.2.input_layernorm.weight")


@pytest.mark.parametrize(("dtype", "name"), [(np.float32, "F32"), (np.float16, "F16"), (ml_dtypes.bfloat16, "BF16")])
def test_stored_types_become_float32(
    dtype: Any,
    name: str,
    tmp_path: Path,
    config: DecoderConfig,
    settings: Settings,
    make_weights: Make,
    write_directory: Write,
) -> None:
    weights = {name: values.astype(dtype) for name, values in make_weights(config).items()}
    checkpoint = DirectoryCheckpoint(write_directory(tmp_path / "model", settings, weights))
    assert checkpoint.source_format == name
    for tensor_name, values in weights.items():
        result = checkpoint.tensor(tensor_name)
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, values.astype(np.float32))


def write_shards(path: Path, settings: Settings, weights: dict[str, Any]) -> dict[str, Any]:
    """Two files and the index that says which tensor lies where; returns the index."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(settings))
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in shards.items():
        save_file({name: weights[name] for name in members}, path / file)
    index = {"metadata": {}, "weight_map": {name: file for file, members in shards.items() for name in members}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards_are_read_through_the_index(
    tmp_path: Path, config: DecoderConfig, settings: Settings, make_weights: Make
) -> None:
    weights = make_weights(config)
    write_shards(tmp_path / "model", settings, weights)
    checkpoint = open_checkpoint(tmp_path / "model")
    for name, values in weights.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), values)


def test_faulty_shards_are_explained(
    tmp_path: Path, config: DecoderConfig, settings: Settings, make_weights: Make
) -> None:
    path = tmp_path / "model"
    weights = make_weights(config)
    index = write_shards(path, settings, weights)
    index_file = path / "model.safetensors.index.json"
    second = path / "model-00002-of-00002.safetensors"

    index_file.write_text(json.dumps({**index, "weight_map": {**index["weight_map"], "x": "../secret.safetensors"}}))
    with pytest.raises(ModelLoadError, match=r"index\.json: weight_map does not map"):
        open_checkpoint(path)
    index_file.write_text(json.dumps({**index, "weight_map": {**index["weight_map"], "x": second.name}}))
    with pytest.raises(ModelLoadError, match=rf"{second.name}: tensor x is missing"):
        open_checkpoint(path)
    index_file.write_text(json.dumps({"metadata": {}}))
    with pytest.raises(ModelLoadError, match=r"index\.json: weight_map does not map"):
        open_checkpoint(path)
    index_file.write_text(json.dumps(index))
    save_file(weights, second)
    with pytest.raises(ModelLoadError, match=r"is also in model-00001-of-00002\.safetensors"):
        open_checkpoint(path)
    second.unlink()
    with pytest.raises(ModelLoadError, match=rf"{second.name}: "):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_key_value_heads": None, "head_dim": None}, {"num_kv_heads": 4}),
        ({"head_dim": 16}, {"head_dim": 16}),
        (
            {"attention_bias": True, "mlp_bias": True},
            {"attention_bias": True, "output_bias": True, "mlp_bias": True},
        ),
        ({"tie_word_embeddings": True}, {"tie_embeddings": True}),
        ({"rope_theta": 5e5}, {"rope_theta": 5e5}),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, {"rope_theta": 5e5}),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, {"rope_scaling": {"rope_type": "linear", "factor": 2}}),
        ({"rope_scaling": LLAMA3}, {"rope_scaling": LLAMA3}),
        (
            {"rope_theta": None, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
            {"rope_scaling": LLAMA3, "rope_theta": 5e5},
        ),
        (
            {"rope_scaling": {name: value for name, value in LLAMA3.items() if not name.startswith("original")}},
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 256}},
        ),
        ({"hidden_act": "swish", "pretraining_tp": 2, "something_new": [1]}, {}),
    ],
)
def test_configurations_are_understood(
    changes: Settings,
    expected: dict[str, Any],
    tmp_path: Path,
    config: DecoderConfig,
    settings: Settings,
    make_weights: Make,
    write_directory: Write,
) -> None:
    config = replace(config, **expected)
    path = write_directory(tmp_path / "model", {**settings, **changes}, make_weights(config))
    assert open_checkpoint(path).config == config


REFUSED = [
    ({"architectures": ["FooForCausalLM"]}, "architecture is 'FooForCausalLM', Arriero runs .* LlamaForCausalLM"),
    ({"architectures": None}, "architecture is None"),
    ({"architectures": [["a"]]}, "architecture is"),
    ({"quantization_config": {"bits": 4}}, r"quantization_config is {'bits': 4}, which asks for something"),
    ({"hidden_act": "relu2"}, "hidden_act is 'relu2'"),
    ({"rope_interleaved": True}, "rope_interleaved is True"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ({"rope_parameters": [1]}, r"rope_parameters is \[1\], expected a JSON object"),
    (
        {"rope_scaling": {"type": "mrope", "factor": 2}},
        "type 'mrope', Arriero computes default, linear, dynamic, llama3",
    ),
    ({"rope_scaling": {"type": "dynamic", "factor": 2, "alpha": 1000}}, "dynamic rope scaling by alpha"),
    ({"rope_scaling": {"rope_type": ["x"]}}, "Arriero computes default"),
    ({"rope_scaling": {"type": "linear"}}, "linear rope scaling has factor = None"),
    ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "low_freq_factor below high_freq_factor"),
    ({"num_hidden_layers": None}, "num_hidden_layers is None, expected an integer"),
    ({"num_hidden_layers": True}, "num_hidden_layers is True, expected an integer"),
    ({"num_hidden_layers": 10**18}, r"tensor model\.layers\.2\.input_layernorm\.weight is missing"),
    ({"num_attention_heads": 0}, "num_heads is 0"),
    ({"hidden_size": 33}, "embed_tokens.weight has shape"),
    ({"head_dim": 7}, "head size is 7"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', expected a number"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
    ({"rope_theta": -1}, "rope_theta is -1.0, expected a positive number"),
    ({"attention_bias": "yes"}, "attention_bias is 'yes', expected true or false"),
    ({"attention_bias": True}, r"self_attn\.q_proj\.bias is missing"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_not_computed_is_refused(
    changes: Settings,
    message: str,
    tmp_path: Path,
    config: DecoderConfig,
    settings: Settings,
    make_weights: Make,
    write_directory: Write,
) -> None:
    path = write_directory(tmp_path / "model", {**settings, **changes}, make_weights(config))
    with pytest.raises(ModelLoadError, match=message) as raised:
        open_checkpoint(path)
    assert str(path) in str(raised.value)


def test_missing_extra_and_foreign_tensors_are_named(
    tmp_path: Path, config: DecoderConfig, settings: Settings, make_weights: Make, write_directory: Write
) -> None:
    weights = make_weights(config)
    path = tmp_path / "model"
    name = "model.layers.1.mlp.up_proj.weight"
    write_directory(path, settings, {**weights, name: weights[name][:-1]})
    with pytest.raises(ModelLoadError, match=rf"{name} has shape \[63, 32\], the configuration implies \[64, 32\]"):
        open_checkpoint(path)
    write_directory(path, settings, {other: values for other, values in weights.items() if other != name})
    with pytest.raises(ModelLoadError, match=rf"{name} is missing, expected shape \[64, 32\]"):
        open_checkpoint(path)
    write_directory(path, settings, {**weights, "model.layers.0.self_attn.q_norm.weight": np.ones(8)})
    with pytest.raises(ModelLoadError, match=r"q_norm\.weight is stored as F64, Arriero reads F32, F16, BF16"):
        open_checkpoint(path)
    write_directory(path, settings, {**weights, "model.layers.0.self_attn.q_norm.weight": np.ones(8, np.float32)})
    with pytest.raises(ModelLoadError, match=r"q_norm\.weight has no place in a llama model"):
        open_checkpoint(path)
    write_directory(path, settings, {**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)})
    assert open_checkpoint(path).config == config


def test_values_that_are_no_numbers_are_refused(
    tmp_path: Path, config: DecoderConfig, settings: Settings, make_weights: Make, write_directory: Write
) -> None:
    weights = make_weights(config)
    weights["model.norm.weight"][3] = np.inf
    checkpoint = open_checkpoint(write_directory(tmp_path / "model", settings, weights))
    with pytest.raises(ModelLoadError, match=r"model\.safetensors: tensor model\.norm\.weight .*not finite"):
        checkpoint.tensor("model.norm.weight")


def test_tied_embeddings_that_are_stored_twice(
    tmp_path: Path, tied: DecoderConfig, settings: Settings, make_weights: Make, write_directory: Write
) -> None:
    settings = {**settings, "tie_word_embeddings": True}
    weights = make_weights(tied)
    embedding = weights["model.embed_tokens.weight"]

    equal = open_checkpoint(write_directory(tmp_path / "equal", settings, {**weights, "lm_head.weight": embedding}))
    assert equal.config.tie_embeddings
    assert "lm_head.weight" not in equal

    other = open_checkpoint(write_directory(tmp_path / "other", settings, {**weights, "lm_head.weight": embedding + 1}))
    assert not other.config.tie_embeddings
    np.testing.assert_array_equal(other.tensor("lm_head.weight"), embedding + 1)

    del weights["model.embed_tokens.weight"]
    head = open_checkpoint(write_directory(tmp_path / "head", settings, {**weights, "lm_head.weight": embedding}))
    assert head.config.tie_embeddings
    np.testing.assert_array_equal(head.tensor("model.embed_tokens.weight"), embedding)


def test_missing_and_unreadable_files_are_named(tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "model"
    path.mkdir()
    with pytest.raises(ModelLoadError, match=r"config\.json: cannot be read"):
        open_checkpoint(path)
    for content, message in ((b"{", "not valid JSON"), (b"[]", "holds list"), (b"\xff\xfe", "not valid JSON")):
        (path / "config.json").write_bytes(content)
        with pytest.raises(ModelLoadError, match=rf"config\.json: .*{message}"):
            open_checkpoint(path)
    (path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelLoadError, match=r"has neither model\.safetensors nor"):
        open_checkpoint(path)
    (path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UnsupportedModel, match=r"pickled \(pytorch_model\.bin\)"):
        open_checkpoint(path)
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelLoadError, match=r"model\.safetensors: is not a whole safetensors file"):
        open_checkpoint(path)


def test_identity_changes_with_weights_and_configuration(
    tmp_path: Path, config: DecoderConfig, settings: Settings, make_weights: Make, write_directory: Write
) -> None:
    weights = make_weights(config)
    path = write_directory(tmp_path / "model", settings, weights)
    first = open_checkpoint(path).identity
    assert open_checkpoint(path).identity == first
    save_file(weights, path / "model.safetensors")
    second = open_checkpoint(path).identity
    assert second != first
    (path / "config.json").write_text(json.dumps({**settings, "rope_theta": 20000.0}))
    assert open_checkpoint(path).identity not in (first, second)


@hypothesis_settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["config.json", "model.safetensors"]),
    st.lists(st.tuples(st.integers(0, 4096), st.integers(0, 255)), max_size=3),
    st.one_of(st.none(), st.integers(0, 1 << 16)),
)
def test_damage_never_gives_another_error(
    tmp_path: Path,
    config: DecoderConfig,
    settings: Settings,
    make_weights: Make,
    write_directory: Write,
    file: str,
    damage: list[tuple[int, int]],
    length: int | None,
) -> None:
    path = write_directory(tmp_path / "model", settings, make_weights(config))
    content = bytearray((path / file).read_bytes())
    for position, byte in damage:
        content[position % len(content)] = byte
    (path / file).write_bytes(content[:length])
    with suppress(ModelLoadError):
        checkpoint = open_checkpoint(path)
        for name, shape in tensor_shapes(checkpoint.config):
            assert checkpoint.tensor(name).shape == shape
