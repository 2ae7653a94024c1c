"""Adapters on the torch engine: PEFT's own logits, and what does not fit together."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from arriero.app import load
from arriero.compute import Row, Want
from arriero.config import Settings
from arriero.errors import ConfigError, ModelLoadError
from arriero.runners.torch import load_runner
from directories import write_model, write_tokenizer
from references import lora


def runner_of(directory, name, num_tokens, change=None):
    base = write_model(directory / "base", lora.CASES[name].checkpoint)
    adapter = lora.write_adapter(name, directory / name)
    if change:
        file = adapter / "adapter_model.safetensors"
        save_file({key: value for key, value in load_file(file).items() if change not in key}, file)
    return load_runner(base, slots=3, threads=1, gpus="none", adapter=adapter, num_tokens=num_tokens).runner


@pytest.mark.parametrize("name", ["all_linear", "resized"])
def test_logits_are_pefts(tmp_path, name):
    case = lora.CASES[name]
    runner = runner_of(tmp_path, name, case.checkpoint.vocab_size + case.num_new_tokens)
    rows = [runner.step([Row(slot, p, 0, Want.ALL)])[lora.kept(len(p))] for slot, p in enumerate(lora.prompts(case))]
    with np.load(lora.FILE) as file:
        np.testing.assert_allclose(np.concatenate(rows), file[f"{name}.logits"], rtol=0, atol=1e-3)
    runner.close()


@pytest.mark.parametrize(
    ("name", "num_tokens", "change", "message"),
    [
        ("plain", 305, None, "the tokenizer has 305 tokens, the base 300"),
        ("resized", 305, None, r"307.*305"),
        ("resized", 307, "lm_head", "the tokenizer has 307 tokens, the base 300"),
        ("plain", 300, "layers.0.self_attn.q_proj.lora_A", "tensors are missing"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, name, num_tokens, change, message):
    with pytest.raises(ModelLoadError, match=message):
        runner_of(tmp_path, name, num_tokens, change)


def test_the_model_is_its_base_with_the_adapter(tmp_path):
    base = write_tokenizer(write_model(tmp_path / "base", lora.CASES["resized"].checkpoint), 300)
    adapter = write_tokenizer(lora.write_adapter("resized", tmp_path / "adapter"), 307)
    options = {"base_model": str(base), "engine": "torch", "threads": 1, "slots": 2, "only_cpu": True}
    model, plain = load(Settings(lora_model=str(adapter), **options)), load(Settings(**options))
    assert (model.tokenizer.vocab_size, model.card.vocab_size) == (307, 307)
    assert (plain.tokenizer.vocab_size, plain.card.vocab_size) == (300, 300)
    assert model.fingerprint != plain.fingerprint
    with pytest.raises(ConfigError, match="give one adapter with --lora-model"):
        load(Settings(lora={"a": str(adapter)}, **options))
