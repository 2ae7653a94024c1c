"""PEFT still saves, and computes, what tests/references/lora.json and lora.npz say."""

import json

import numpy as np
import pytest

from references import lora

SHORT = ("rank_patterns", "resized", "embeddings", "resized_tied")
"""Enough to notice when PEFT changes its format; all are made again by the script."""


@pytest.mark.parametrize("name", SHORT)
def test_the_reference_is_what_peft_makes(tmp_path, name):
    case, about = lora.CASES[name], json.loads(lora.ABOUT.read_text())[name]
    made = lora.saved(case, tmp_path / "saved")
    assert made["tensors"] == about["tensors"]
    assert made["config"] | {"peft_version": ""} == about["config"] | {"peft_version": ""}
    logits = lora.reference(case, lora.write_adapter(name, tmp_path / "written"))
    with np.load(lora.FILE) as file:
        np.testing.assert_allclose(logits, file[f"{name}.logits"], rtol=0, atol=1e-4)
