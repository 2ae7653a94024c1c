"""Adapters' files: what is read out of them, and what is refused with which words."""

import dataclasses
import json
import os
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.adapters.lora import Adapter
from arriero.models.adapters.lora_config import read_lora_config
from arriero.models.checkpoint import open_checkpoint
from references import lora
from references.tiny_models import CASES, random_checkpoint

BASE = random_checkpoint(CASES["grouped"])
Q, K, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj", "model.layers.1.mlp.down_proj"


def config(directory, **fields):
    """An adapter_config.json, read."""
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8} | fields))
    return read_lora_config(directory)


def changed(directory, change):
    """The plain adapter with its tensors changed."""
    path = lora.write_adapter("plain", directory / "changed")
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return path


@pytest.mark.parametrize(
    ("fields", "modules"),
    [
        ({"target_modules": ["q_proj"]}, [Q]),
        ({"target_modules": ["proj"]}, []),
        ({"target_modules": ["layers.1.self_attn.k_proj", "mlp.down_proj"]}, [K, DOWN]),
        ({"target_modules": "all-linear"}, [Q, K, DOWN]),
        ({"target_modules": "ALL-linear", "exclude_modules": ".*self_attn.*"}, [DOWN]),
        ({"target_modules": r".*\.[qk]_proj"}, [Q, K]),
        ({"target_modules": r"[qk]_proj"}, []),
        ({"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["self_attn.q_proj"]}, [K]),
        ({"target_modules": ["q_proj", "down_proj"], "layers_to_transform": 1}, [DOWN]),
        ({"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 1], "layers_pattern": "h"}, []),
        ({"target_modules": ["q_proj"], "layers_to_transform": [], "layers_pattern": "h"}, [Q]),
        ({"target_modules": ["q_proj", "embed_tokens"]}, [Q, "model.embed_tokens"]),
        ({"target_modules": ["lm_head", "embed_tokens"], "modules_to_save": ["embed_tokens"]}, ["lm_head"]),
    ],
    ids=str,
)
def test_modules_are_chosen_as_peft_chooses_them(tmp_path, fields, modules):
    read = config(tmp_path, **fields)
    assert [name for name in (Q, K, DOWN, "model.embed_tokens", "lm_head") if read.changes(name)] == modules


def test_ranks_and_scalings_follow_the_first_pattern_that_fits(tmp_path):
    read = config(
        tmp_path,
        target_modules="all-linear",
        rank_pattern={"k_proj": 2, r"layers\.\d\.self_attn\.k_proj": 3, "^mlp.down_proj": 5},
        alpha_pattern={"^model.layers.0.self_attn.q_proj": 1, "proj_q": 7},
    )
    assert [read.rank_of(name) for name in (Q, K, DOWN)] == [4, 2, 4]
    assert [read.scaling_of(name) for name in (Q, K, DOWN)] == [0.25, 4, 2]
    assert config(tmp_path, use_rslora=True, r=16).scaling_of(K) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"peft_type": "LOHA"},
        {"task_type": "SEQ_CLS"},
        {"init_lora_weights": "pissa"},
        {"layer_replication": [[0, 1]]},
        {"trainable_token_indices": [3]},
        {"alora_invocation_tokens": [1]},
        {"target_parameters": ["mlp.experts"]},
        {"modules_to_save": ["norm"]},
        {"a_field_of_the_future": 1},
    ],
    ids=str,
)
def test_what_is_not_computed_is_refused_by_name(tmp_path, fields):
    with pytest.raises(UnsupportedModel, match=next(iter(fields))):
        config(tmp_path, target_modules=["q_proj"], **fields)


def test_fields_that_change_nothing_pass(tmp_path):
    read = config(
        tmp_path,
        lora_dropout=0.1,
        fan_in_fan_out=True,
        init_lora_weights="gaussian",
        loftq_config={"bits": 4},
        inference_mode=False,
        runtime_config={"ephemeral_gpu_offload": True},
        use_dora=False,
        a_field_of_the_future=None,
        another={},
    )
    assert read.rank == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": "4"}, "r is '4', expected an integer"),
        ({"lora_alpha": None}, "lora_alpha is None, expected a number"),
        ({"target_modules": [1]}, "target_modules is [1], expected a list of names"),
        ({"target_modules": "(q"}, "target_modules has '(q', which is no regular expression"),
        ({"rank_pattern": {"(": 1}}, "rank_pattern has '(', which is no regular expression"),
        ({"rank_pattern": [1]}, "rank_pattern is [1], expected a JSON object"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform is ['1'], expected layer numbers"),
    ],
    ids=str,
)
def test_a_malformed_configuration_is_named(tmp_path, fields, message):
    with pytest.raises(ModelLoadError, match=re.escape(message)):
        config(tmp_path, **fields)


def test_a_directory_without_an_adapter(tmp_path):
    with pytest.raises(ModelLoadError, match=r"has no adapter_config\.json"):
        Adapter(tmp_path, BASE)


def test_an_adapter_is_no_model_by_itself(tmp_path):
    with pytest.raises(ModelLoadError, match="is a LoRA adapter; give it with --lora-model"):
        open_checkpoint(lora.write_adapter("plain", tmp_path / "adapter"))


def test_weights_that_are_missing_or_pickled(tmp_path):
    path = lora.write_adapter("plain", tmp_path / "adapter")
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"has no adapter_model\.safetensors"):
        Adapter(path, BASE)
    (path / "adapter_model.bin").write_bytes(b"\x80")
    with pytest.raises(UnsupportedModel, match=r"adapter_model\.bin: is pickled"):
        Adapter(path, BASE)


def test_weights_that_are_cut(tmp_path):
    path = lora.write_adapter("plain", tmp_path / "adapter")
    file = path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelLoadError, match="not a whole safetensors file"):
        Adapter(path, BASE)


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def test_a_missing_tensor_is_named(tmp_path):
    with pytest.raises(ModelLoadError, match=re.escape(f"tensor {NAME} is missing")):
        Adapter(changed(tmp_path, lambda tensors: tensors.pop(NAME)), BASE)


def test_a_tensor_too_many_is_named(tmp_path):
    extra = NAME.replace("q_proj", "o_proj")
    with pytest.raises(ModelLoadError, match=re.escape(f"tensor {extra} is not one that")):
        Adapter(changed(tmp_path, lambda tensors: tensors.update({extra: tensors[NAME]})), BASE)


def test_another_rank_than_the_configuration_says(tmp_path):
    with pytest.raises(
        ModelLoadError, match=re.escape(f"tensor {NAME} has shape [3, 64], rank and base model imply [8")
    ):
        Adapter(changed(tmp_path, lambda tensors: tensors.update({NAME: tensors[NAME][:3].copy()})), BASE)


def test_values_that_are_not_numbers(tmp_path):
    path = changed(tmp_path, lambda tensors: tensors[NAME].fill(np.nan))
    with pytest.raises(ModelLoadError, match="not finite"):
        Adapter(path, BASE).delta(Q)


def test_an_adapter_for_another_base(tmp_path):
    with pytest.raises(ModelLoadError, match="Is it the base model that the adapter was made for"):
        Adapter(lora.write_adapter("plain", tmp_path / "a"), random_checkpoint(CASES["odd_sizes"]))
    short = random_checkpoint(dataclasses.replace(CASES["grouped"], num_layers=1))
    with pytest.raises(ModelLoadError, match=r"model\.layers\.1\.self_attn\.q_proj"):
        Adapter(lora.write_adapter("plain", tmp_path / "b"), short)


def test_a_resized_vocabulary_without_a_head_names_both_sizes(tmp_path):
    path = lora.write_adapter("resized", tmp_path / "adapter", modules_to_save=["embed_tokens"])
    file = path / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if "lm_head" not in name}
    save_file(kept, file)
    with pytest.raises(ModelLoadError, match="embeddings have 307 tokens and the head 300; the base model has 300"):
        Adapter(path, BASE)


def test_an_adapter_of_a_resized_vocabulary_has_its_own_size(tmp_path):
    adapter = Adapter(lora.write_adapter("resized", tmp_path / "adapter"), BASE)
    assert adapter.config.vocab_size == 307
    assert adapter.tensor("model.embed_tokens.weight").shape == (307, 64)
    assert adapter.tensor("lm_head.weight").shape == (307, 64)
    assert (adapter.tensor("model.norm.weight") == BASE.tensor("model.norm.weight")).all()


def test_the_identity_tells_contents_apart(tmp_path):
    """Archives unpack files of one size with one time."""
    one, same, other = (lora.write_adapter("plain", tmp_path / name) for name in ("one", "same", "other"))
    file = other / "adapter_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    for path in (one, other):
        for each in path.iterdir():
            os.utime(each, (0, 0))
    assert Adapter(one, BASE).identity == Adapter(same, BASE).identity
    assert Adapter(one, BASE).identity != Adapter(other, BASE).identity
    settings = one / "adapter_config.json"
    settings.write_text(settings.read_text().replace('"lora_alpha": 16', '"lora_alpha": 17'))
    assert Adapter(one, BASE).identity != Adapter(same, BASE).identity
