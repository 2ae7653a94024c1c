from __future__ import annotations

from arriero.models.families import ARCHITECTURES
from references.tiny_families import CASES


def test_every_architecture_has_a_case_with_transformers_logits() -> None:
    assert {settings["architectures"][0] for settings in CASES.values()} == set(ARCHITECTURES)
