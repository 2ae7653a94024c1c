"""A graph whose weights pass protobuf's limit of 2 GB; without PROOF=1 a small one laid out the same way."""

import dataclasses

import numpy as np

from arriero.compute import Row
from arriero.runners.onnx import load_runner
from arriero.runners.onnx.builder import MODEL_FILE, WEIGHTS_FILE
from fidelity.form import PROOF
from references.tiny_models import CASES, random_checkpoint

TWO_GB = 2**31


class WideVocabulary:
    """A tiny model whose vocabulary is its first one over and over, so that its head is as large as we please."""

    def __init__(self, original, times):
        self.original, self.times = original, times
        self.config = dataclasses.replace(original.config, vocab_size=times * original.config.vocab_size)
        self.identity = f"{original.identity}-{times}"

    def tensor(self, name):
        tensor = self.original.tensor(name)
        return np.tile(tensor, (self.times, 1)) if "embed_tokens" in name or "lm_head" in name else tensor

    def __contains__(self, name):
        return name in self.original


def test_weights_may_pass_the_limit_of_protobuf(tmp_path, capsys):
    small = random_checkpoint(CASES["grouped"])
    row_bytes = small.config.vocab_size * small.config.hidden_size * 4
    large = WideVocabulary(small, 1 + (TWO_GB if PROOF else 2**22) // row_bytes)
    logits = []
    for checkpoint in (small, large):
        runner = load_runner(checkpoint, weights="fp32", slots=1, context=16, threads=2, cache=tmp_path)
        logits.append(runner.step([Row(0, [5, 9, 2, 7], 0)]).copy())
        runner.close()
    np.testing.assert_allclose(logits[1], np.tile(logits[0], (1, large.times)), atol=1e-4)
    sizes = {name: max(path.stat().st_size for path in tmp_path.rglob(name)) for name in (MODEL_FILE, WEIGHTS_FILE)}
    assert sizes[MODEL_FILE] < 100_000
    assert sizes[WEIGHTS_FILE] > (TWO_GB if PROOF else 2**22)
    with capsys.disabled():
        print(f"\nweights of {sizes[WEIGHTS_FILE]:,} bytes beside a graph of {sizes[MODEL_FILE]:,}")
