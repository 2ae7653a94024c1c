"""Pickled weights, through torch's restricted reader, for the engine that reads safetensors alone."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from arriero.app import load
from arriero.config import Settings
from arriero.errors import ModelLoadError
from arriero.models.sources.inventory import find
from arriero.runners.torch.pickles import to_safetensors
from tiny_directory import write_directory


@pytest.fixture
def tiny(tmp_path):
    """A directory in both forms' stead: its tensors, and nothing that holds them yet."""
    path = write_directory(tmp_path / "Tiny")
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    return path, tensors


def settings(path, tmp_path):
    return Settings(model=str(path), cache=tmp_path / "cache", slots=1, threads=1)


def check(path, tensors, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    to_safetensors(path, target)
    written = {}
    for file in target.glob("*.safetensors"):
        written |= load_file(file)
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(written[name], tensor), name
    assert (target / "config.json").read_bytes() == (path / "config.json").read_bytes()
    assert not list(target.glob("*.bin*"))


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_file(archive, dtype, tiny, tmp_path):
    path, tensors = tiny
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    tensors["view"] = tensors["lm_head.weight"].T[3:5]  # shares memory, and lies across it
    torch.save(tensors, path / "pytorch_model.bin", _use_new_zipfile_serialization=archive)
    check(path, tensors, tmp_path)


def test_several_files(tiny, tmp_path):
    path, tensors = tiny
    names = sorted(tensors)
    halves = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in halves.items():
        torch.save({name: tensors[name] for name in part}, path / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    check(path, tensors, tmp_path)
    model = load(settings(path, tmp_path))
    assert (model.card.engine, model.card.family) == ("onnx", "llama")


def test_the_model_is_converted_once_and_served_by_onnx(tiny, tmp_path, monkeypatch):
    path, tensors = tiny
    torch.save(tensors, path / "pytorch_model.bin")
    first = load(settings(path, tmp_path))
    assert first.card.engine == "onnx"
    assert "pickled" in first.card.engine_reason
    monkeypatch.setattr("torch.load", None)
    assert load(settings(path, tmp_path)).fingerprint == first.fingerprint


def test_an_adapter(tmp_path):
    path, target = tmp_path / "adapter", tmp_path / "target"
    path.mkdir()
    target.mkdir()
    (path / "adapter_config.json").write_text("{}")
    tensors = {"base_model.model.lm_head.lora_A.weight": torch.ones(2, 3)}
    torch.save(tensors, path / "adapter_model.bin")
    to_safetensors(path, target)
    assert {file.name for file in target.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert torch.equal(*load_file(target / "adapter_model.safetensors").values(), *tensors.values())


class Trap:
    def __reduce__(self):
        return print, ("sprung",)


def test_a_pickle_of_more_than_tensors_is_refused(tiny, tmp_path, capfd):
    path, tensors = tiny
    for content in (pickle.dumps({"a": Trap()}), None):
        if content is None:
            torch.save({**tensors, "trap": Trap()}, path / "pytorch_model.bin")
        else:
            (path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin: is damaged, or a pickle of more than tensors"):
            load(settings(path, tmp_path))
    assert "sprung" not in capfd.readouterr().out


def test_what_is_no_tensor_is_named(tiny, tmp_path):
    path, tensors = tiny
    for content, message in (([1], "holds list"), ({"state_dict": tensors}, "state_dict is dict, expected a tensor")):
        torch.save(content, path / "pytorch_model.bin")
        with pytest.raises(ModelLoadError, match=message):
            load(settings(path, tmp_path))


def test_a_truncated_pickle_is_one_sentence(tiny, tmp_path):
    path, tensors = tiny
    file = path / "pytorch_model.bin"
    torch.save(tensors, file)
    content = file.read_bytes()
    for length in (0, 3, 10, 1000, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin: "):
            load(settings(path, tmp_path))


def test_its_conversions_are_known_as_those_of_the_model(tiny, tmp_path):
    path, tensors = tiny
    torch.save(tensors, path / "pytorch_model.bin")
    load(settings(path, tmp_path))
    assert len(find(str(path), tmp_path / "cache").conversions) == 2


def test_an_encoder(tmp_path):
    path = tmp_path / "Tiny-Bert"
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=40, max_position_embeddings=64, **sizes), add_pooling_layer=False)
    model.config.architectures = ["BertModel"]
    model.config.save_pretrained(path)
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    (path / "vocab.txt").write_text("\n".join(tokens))
    # Files of that age keep the positions, which are no weights.
    positions = {"embeddings.position_ids": torch.arange(64)[None]}
    torch.save(model.state_dict() | positions, path / "pytorch_model.bin")
    served = load(settings(path, tmp_path))
    assert (served.card.engine, served.card.family) == ("onnx", "bert")
    assert served.card.parameters == sum(parameter.numel() for parameter in model.parameters())
