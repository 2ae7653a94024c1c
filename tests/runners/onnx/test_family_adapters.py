"""An adapter over a base of any family computes what the base computes with the adapter merged into its weights."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from arriero.compute import Row, Want
from arriero.errors import UnsupportedModel
from arriero.models.adapters.lora import Adapter
from arriero.models.checkpoint import open_checkpoint
from arriero.runners.onnx import load_runner
from references import tiny_families

CASES = {case.split("/")[0]: case for case in tiny_families.CASES}


@pytest.mark.parametrize("family", CASES)
def test_an_adapter_is_as_good_as_merged(family, tmp_path):
    case = CASES[family]
    for name in ("base", "merged", "adapter"):
        (tmp_path / name).mkdir()
    base = open_checkpoint(tiny_families.write(case, tmp_path / "base"))
    stored = load_file(tmp_path / "base" / "model.safetensors")
    random = np.random.default_rng(3)
    matrices, targets = {}, set()
    for name in [name for name in stored if name.endswith("_proj.weight")]:
        module = name.removesuffix(".weight")
        into = random.standard_normal((4, stored[name].shape[1]), dtype=np.float32) / 10
        out = random.standard_normal((len(stored[name]), 4), dtype=np.float32) / 5
        matrices[f"base_model.model.{module}.lora_A.weight"] = into
        matrices[f"base_model.model.{module}.lora_B.weight"] = out
        stored[name] += 2 * (out @ into)
        targets.add(module.rsplit(".", 1)[1])
    lora = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": sorted(targets)}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(lora))
    save_file(matrices, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "merged" / "config.json").write_bytes((tmp_path / "base" / "config.json").read_bytes())
    save_file(stored, tmp_path / "merged" / "model.safetensors")
    plain = last_logits(base, case, tmp_path)
    adapted = last_logits(base, case, tmp_path, [Adapter(tmp_path / "adapter", base)])
    merged = last_logits(open_checkpoint(tmp_path / "merged"), case, tmp_path)
    np.testing.assert_allclose(adapted, merged, rtol=0, atol=2e-4)
    assert np.abs(adapted - plain).max() > 0.1


def test_adapters_over_heads_that_need_zeros_are_refused(tmp_path):
    base = open_checkpoint(tiny_families.write("llama/heads_of_20", tmp_path))
    with pytest.raises(UnsupportedModel, match="heads of 20 elements"):
        load_runner(base, weights="fp32", slots=1, context=192, threads=1, cache=tmp_path, adapters=[None])


def last_logits(checkpoint, case, cache, adapters=()):
    """Of the longest prompt's positions, by the last adapter if there are any."""
    runner = load_runner(
        checkpoint, weights="fp32", slots=1, context=192, threads=1, cache=cache / "cache", adapters=adapters
    )
    logits = runner.step([Row(0, tiny_families.prompts(case)[-1], 0, Want.ALL, adapter=len(adapters))]).copy()
    runner.close()
    return logits
