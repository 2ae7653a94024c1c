import json
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "references" / "sampling_filters.py"


def test_the_committed_file_is_what_transformers_keeps_today():
    committed = json.loads(SCRIPT.with_suffix(".json").read_text())
    made = runpy.run_path(str(SCRIPT))["make"]()
    assert made["rows"] == committed["rows"]
    for now, then in zip(made["cases"], committed["cases"], strict=True):
        assert now["parameters"] == then["parameters"]
        assert now["kept"] == then["kept"]
        assert now["probabilities"] == pytest.approx(then["probabilities"], rel=1e-4)
