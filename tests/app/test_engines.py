"""Which engine is chosen for which files; none of it needs torch."""

import importlib.util
import json

import pytest

from arriero.app import load
from arriero.app.engines import choose_engine
from arriero.config import Settings
from arriero.errors import ConfigError, ModelLoadError, UnsupportedModel
from tiny_directory import write_directory


@pytest.fixture
def directory(tmp_path):
    def write(architecture, **values):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture], **values}))
        return tmp_path

    return write


def test_what_onnx_does_not_take_goes_to_torch(directory):
    choice = choose_engine(directory("T5ForConditionalGeneration"))
    assert choice.engine == "torch"
    assert choice.reason == "The onnx engine does not know the architecture T5ForConditionalGeneration."
    choice = choose_engine(directory("T5ForConditionalGeneration", model_type="t5"))
    assert choice.reason == "It is an encoder-decoder; the onnx engine computes decoders."


@pytest.mark.parametrize("weights", ["auto", "int8", "int4"])
@pytest.mark.parametrize(("fast", "engine"), [(True, "native"), (False, "onnx")])
def test_the_native_engine_takes_integers_where_it_is_fast(fast, engine, weights, tmp_path, monkeypatch):
    path = write_directory(tmp_path / "model")
    monkeypatch.setattr("arriero.runners.native.is_fast", lambda: fast)
    assert choose_engine(path, weights=weights).engine == engine
    assert choose_engine(path, weights=weights, engine="native").engine == "native"
    with pytest.raises(ConfigError, match="in int8 and int4, but --weights is fp32"):
        choose_engine(path, weights="fp32", engine="native")


def no_torch(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))


LLAMA = {
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def test_pickled_weights_need_torch_to_read_them(directory, monkeypatch):
    path = directory("LlamaForCausalLM", model_type="llama", **LLAMA)
    (path / "pytorch_model.bin").write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    choice = choose_engine(path)
    assert choice.engine == "onnx"
    assert "pickled" in choice.reason
    monkeypatch.undo()
    no_torch(monkeypatch)
    choice = choose_engine(path)
    assert choice.engine == "torch"
    assert "pickled (pytorch_model.bin)" in choice.reason
    with pytest.raises(ModelLoadError, match=r"pip install 'arriero\[torch\]'.*pickled"):
        load(Settings(model=str(path)))


def test_pickled_weights_of_another_family_are_left_to_torch(directory, monkeypatch):
    path = directory("GPT2LMHeadModel")
    (path / "pytorch_model.bin").write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    assert choose_engine(path).engine == "torch"


def test_a_model_that_writes_no_text_is_refused(directory):
    with pytest.raises(UnsupportedModel, match="BertForSequenceClassification"):
        choose_engine(directory("BertForSequenceClassification"))


def test_settings_decide_where_they_can(directory, tmp_path):
    path = directory("GPT2LMHeadModel")
    assert choose_engine(path, engine="torch").engine == "torch"
    assert choose_engine(path, weights="bf16").engine == "torch"
    assert choose_engine(path, gpus="0,1").engine == "torch"
    with pytest.raises(UnsupportedModel):
        choose_engine(path, engine="onnx")
    with pytest.raises(ConfigError, match="--gpus is 0"):
        choose_engine(path, engine="onnx", gpus="0")
    with pytest.raises(ConfigError, match="bf16"):
        choose_engine(path, engine="onnx", weights="bf16")
    file = tmp_path / "model.gguf"
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match="GGUF files are for the onnx engine"):
        choose_engine(file, engine="torch")


def test_a_missing_torch_is_told_with_what_to_install(directory, monkeypatch):
    path = directory("GPT2LMHeadModel")
    no_torch(monkeypatch)
    with pytest.raises(ModelLoadError, match=r"pip install 'arriero\[torch\]'"):
        load(Settings(model=str(path)))


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8"])
def test_quantised_weights_are_refused_with_what_helps(directory, method):
    path = directory("LlamaForCausalLM", quantization_config={"quant_method": method})
    with pytest.raises(UnsupportedModel, match=rf"quantised as '{method}', .* or as a GGUF file"):
        choose_engine(path)
    assert choose_engine(path, engine="torch").engine == "torch"
