"""What the contract does not say: which architectures are refused, and what long contexts leave behind."""

import dataclasses

import pytest

from arriero.compute import Row, Want
from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.runners.onnx import load_runner
from arriero.runners.onnx.cache import KEPT_TOKENS
from references.tiny_models import CASES, random_checkpoint


def test_heads_that_attention_cannot_compute_are_refused(tmp_path):
    config = dataclasses.replace(CASES["grouped"], head_dim=24, qk_norm="head")
    with pytest.raises(UnsupportedModel, match="24 elements and norms of queries and keys"):
        load_runner(random_checkpoint(config), weights="fp32", slots=1, context=16, threads=1, cache=tmp_path)


def test_a_graph_that_cannot_be_opened_is_a_load_error(tmp_path):
    checkpoint = random_checkpoint(CASES["grouped"])
    options = {"weights": "fp32", "slots": 1, "context": 16, "threads": 1, "cache": tmp_path}
    load_runner(checkpoint, **options).close()
    (model,) = tmp_path.rglob("model.onnx")
    model.write_bytes(b"\0" * model.stat().st_size)
    with pytest.raises(ModelLoadError, match=r"model\.onnx"):
        load_runner(checkpoint, **options)


def test_memory_of_a_long_context_comes_back_and_short_ones_stay_right(tmp_path, resident_bytes):
    config = dataclasses.replace(CASES["grouped"], context=16_384, num_kv_heads=4, head_dim=64)
    checkpoint = random_checkpoint(config)
    runner = load_runner(checkpoint, weights="fp32", slots=2, context=16_384, threads=1, cache=tmp_path)
    short = [3, 1, 4, 1, 5, 9]
    expected = runner.step([Row(0, short, 0)]).copy()
    runner.free(0)
    before = resident_bytes()
    length = 16_000
    for start in range(0, length, 500):
        runner.step([Row(0, [7] * 500, start, Want.NOTHING)])
    long = resident_bytes()
    assert long - before > 0.9 * length * runner.info.bytes_per_token
    runner.free(0)
    assert long - resident_bytes() > 0.9 * (length - KEPT_TOKENS) * runner.info.bytes_per_token
    assert (runner.step([Row(0, short, 0)]) == expected).all()
    runner.close()
