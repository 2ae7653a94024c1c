"""Adapters of every kind against PEFT's logits, one at a time and several in a batch."""

import numpy as np
import pytest

from arriero.compute import Row, Want
from arriero.models.adapters.lora import Adapter
from arriero.runners.onnx import load_runner
from arriero.runners.onnx.adapters import build_adapters
from arriero.runners.onnx.decoder import build_decoder
from arriero.runners.onnx.formats import Fp32
from arriero.runners.onnx.runner import OnnxRunner
from arriero.runners.onnx.smoothing import SmoothedCheckpoint
from references import lora
from references.tiny_models import random_checkpoint

TOLERANCE = 1e-4


def reference(name):
    """PEFT's logits of each prompt."""
    counts = [len(lora.kept(length)) for length in lora.PROMPT_LENGTHS]
    with np.load(lora.FILE) as file:
        return np.split(file[f"{name}.logits"], np.cumsum(counts)[:-1])


def open_runner(names, directory, **options):
    """A runner with these adapters over the base of the first."""
    checkpoint = random_checkpoint(lora.CASES[names[0]].checkpoint)
    adapters = [Adapter(lora.write_adapter(name, directory / name), checkpoint) for name in names]
    options = {"weights": "fp32", "slots": 8, "context": 64, "threads": 1, "cache": directory / "cache", **options}
    return load_runner(checkpoint, adapters=adapters, **options)


@pytest.mark.parametrize("name", lora.CASES)
def test_logits_are_pefts(tmp_path, name):
    runner = open_runner([name], tmp_path)
    for slot, (prompt, expected) in enumerate(zip(lora.prompts(lora.CASES[name]), reference(name), strict=True)):
        logits = runner.step([Row(slot, prompt, 0, Want.ALL, adapter=1)])
        np.testing.assert_allclose(logits[lora.kept(len(prompt))], expected, rtol=0, atol=TOLERANCE)
    runner.close()


THREE = ("all_linear", "resized", "embeddings")
"""One that changes linear layers only, one with a vocabulary of its own, one that changes the embeddings."""


@pytest.fixture(scope="module", params=["fp32", "int8", "int4"])
def crowd(request, tmp_path_factory):
    """A runner with three adapters, and how far its logits may be from those of rows by themselves."""
    runner = open_runner(THREE, tmp_path_factory.mktemp(request.param), weights=request.param)
    yield runner, {"fp32": 1e-4, "int8": 0, "int4": 0.5}[request.param]
    runner.close()


def answers(runner, rows):
    """Last logits of each (slot, prompt, following token, adapter), decoded together, prompts read one by one."""
    for slot, prompt, _, adapter in rows:
        runner.step([Row(slot, prompt, 0, Want.NOTHING, adapter)])
    logits = runner.step([Row(slot, [token], len(prompt), Want.LAST, adapter) for slot, prompt, token, adapter in rows])
    logits = logits.copy()
    for slot, *_ in rows:
        runner.free(slot)
    return logits


def test_rows_of_all_adapters_share_a_step(crowd):
    runner, tolerance = crowd
    rows = [(slot, [7, 3 + slot, 9, 12], 5 + slot, slot % 4) for slot in (5, 0, 3, 6, 1, 2)]
    together = answers(runner, rows)
    alone = np.concatenate([answers(runner, [row]) for row in rows])
    np.testing.assert_allclose(together, alone, rtol=0, atol=tolerance)
    own = alone[[adapter for *_, adapter in sorted(rows)].index(0)]
    assert all(np.abs(own[:300] - other[:300]).max() > 0.1 for other in alone[1:3])


def test_a_batch_of_one_adapter_and_the_others_after_it(crowd):
    """Every choice of heads has a binding of its own; none writes where another reads."""
    runner, tolerance = crowd
    for adapters in [(2, 2), (0, 2), (1, 3), (2, 0), (2, 2)]:
        rows = [(slot, [7, 3, 9], 5 + slot, adapter) for slot, adapter in enumerate(adapters)]
        alone = np.concatenate([answers(runner, [row]) for row in rows])
        np.testing.assert_allclose(answers(runner, rows), alone, rtol=0, atol=tolerance)


def test_tokens_that_an_adapter_does_not_know_have_no_probability(crowd):
    runner, _ = crowd
    info = runner.info
    assert (info.num_adapters, info.vocab_size, info.vocab_sizes) == (3, 307, (300, 300, 307, 300))
    for adapter, size in enumerate(info.vocab_sizes):
        (logits,) = answers(runner, [(0, [1, 2, 3], 4, adapter)])
        assert np.isfinite(logits[:size]).all()
        assert (logits[size:] == -np.inf).all()


def test_three_adapters_in_one_batch_are_pefts(tmp_path):
    runner = open_runner(THREE, tmp_path)
    prompts = [lora.prompts(lora.CASES[name])[-1] for name in THREE]
    for slot, prompt in enumerate(prompts):
        runner.step([Row(slot, prompt[:-1], 0, Want.NOTHING, slot + 1)])
    logits = runner.step(
        [Row(slot, prompt[-1:], len(prompt) - 1, Want.LAST, slot + 1) for slot, prompt in enumerate(prompts)]
    )
    for row, name in zip(logits, THREE, strict=True):
        expected = reference(name)[-1][-1]
        np.testing.assert_allclose(row[: len(expected)], expected, rtol=0, atol=TOLERANCE)
    runner.close()


def test_rows_without_an_adapter_are_the_base_alone(crowd, tmp_path):
    """Bit for bit in every format: zeros are added."""
    runner, _ = crowd
    weights = {1e-4: "fp32", 0: "int8", 0.5: "int4"}[crowd[1]]
    checkpoint = random_checkpoint(lora.CASES[THREE[0]].checkpoint)
    base = load_runner(checkpoint, weights=weights, slots=8, context=64, threads=1, cache=tmp_path)
    rows = [(0, [7, 3, 9, 12], 5, 0)]
    np.testing.assert_array_equal(answers(runner, rows)[:, :300], answers(base, rows))
    base.close()


class SmoothFp32(Fp32):
    """Products without loss in smoothed coordinates: what is left is whether the coordinates fit together."""

    smooth = True

    def __init__(self, *, rotated: bool) -> None:
        self.rotated = rotated


@pytest.mark.parametrize(("rotated", "observed"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("name", lora.CASES)
def test_adapters_are_the_same_in_smoothed_coordinates(tmp_path, name, rotated, observed):
    checkpoint = random_checkpoint(lora.CASES[name].checkpoint)
    config = checkpoint.config
    size = config.num_layers * (config.intermediate_size + 2 * config.hidden_size)
    reach = np.linspace(1, 9, size, dtype=np.float32)
    reach = reach.reshape(config.num_layers, -1) if observed else None
    adapter = Adapter(lora.write_adapter(name, tmp_path / name), checkpoint)
    base, adapted = tmp_path / "base", tmp_path / "adapted"
    base.mkdir()
    adapted.mkdir()
    form = SmoothFp32(rotated=rotated)
    build_decoder(SmoothedCheckpoint(checkpoint, reach, rotated=rotated), form, base)
    build_adapters(base, checkpoint, [adapter], form, reach, adapted)
    runner = OnnxRunner(adapted, config, num_slots=3, context=64, threads=1, invariant=True)
    for slot, (prompt, expected) in enumerate(zip(lora.prompts(lora.CASES[name]), reference(name), strict=True)):
        logits = runner.step([Row(slot, prompt, 0, Want.ALL, adapter=1)])
        np.testing.assert_allclose(logits[lora.kept(len(prompt))], expected, rtol=0, atol=TOLERANCE)
    runner.close()


def kl(expected, logits):
    """How far a distribution is from the expected one, in nats a position."""
    expected, logits = (values - values.max(-1, keepdims=True) for values in (expected, logits))
    expected, logits = (values - np.log(np.exp(values).sum(-1, keepdims=True)) for values in (expected, logits))
    return (np.exp(expected) * (expected - logits)).sum(-1).mean()


class Merged:
    """A base model with an adapter's changes in its weights."""

    def __init__(self, adapter):
        self.adapter, self.config, self.identity = adapter, adapter.config, "merged"

    def tensor(self, name):
        delta = None if name == "lm_head.weight" else self.adapter.delta(name.removesuffix(".weight"))
        value = self.adapter.tensor(name)
        return value if delta is None else value + delta.out @ delta.into

    def __contains__(self, name):
        return name in self.adapter


@pytest.mark.parametrize("name", ["all_linear", "biases", "resized", "embeddings", "rank_patterns", "odd_sizes"])
def test_int8_with_an_adapter_is_as_close_to_fp32_as_the_merged_model_in_int8(tmp_path, name):
    adapter = Adapter(lora.write_adapter(name, tmp_path / "again"), random_checkpoint(lora.CASES[name].checkpoint))
    options = {"weights": "int8", "slots": 1, "context": 64, "threads": 1, "cache": tmp_path / "merged"}
    runners = [
        open_runner([name], tmp_path / "fp32"),
        open_runner([name], tmp_path / "int8", weights="int8"),
        load_runner(Merged(adapter), **options),
    ]
    exact, ours, merged = (
        runner.step([Row(0, list(range(60)), 0, Want.ALL, runner.info.num_adapters)]).copy() for runner in runners
    )
    assert 0 < kl(exact, ours) < 1.5 * kl(exact, merged)
    for runner in runners:
        runner.close()


def test_the_bases_conversion_serves_with_and_without_adapters(tmp_path):
    cache = tmp_path / "cache"
    open_runner(["plain"], tmp_path, cache=cache).close()
    (base,) = [file for file in cache.rglob("weights.bin") if not (file.parent / "adapters.bin").exists()]
    written = base.stat()
    open_runner(["resized"], tmp_path, cache=cache).close()
    files = list(cache.rglob("weights.bin"))
    assert len(files) == 3
    assert {file.stat().st_ino for file in files} == {written.st_ino}
    assert base.stat().st_mtime_ns == written.st_mtime_ns
