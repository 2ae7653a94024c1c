"""A change of coordinates that changes nothing else."""

import numpy as np
import pytest

from arriero.compute import Row, Want
from arriero.models.checkpoint import open_checkpoint
from arriero.runners.onnx.decoder import build_decoder
from arriero.runners.onnx.formats import Fp32
from arriero.runners.onnx.runner import OnnxRunner
from arriero.runners.onnx.smoothing import SmoothedCheckpoint, observe, rotate
from references import tiny_families
from references.tiny_models import CASES, prompts, random_checkpoint


@pytest.mark.parametrize("size", [1, 3, 8, 24, 96, 576, 2048])
def test_a_rotation_keeps_lengths_and_angles(size):
    matrix = rotate(np.eye(size, dtype=np.float32))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-5)


@pytest.mark.parametrize("size", [64, 576, 896, 3072])
def test_a_rotation_spreads_an_outlier_over_all_channels(size):
    spread = np.abs(rotate(np.eye(size, dtype=np.float32)[3]))
    assert spread.max() < 2 / np.sqrt(size)
    assert np.abs(rotate(np.ones(size, np.float32))).max() < 6


# A case of every other family: what comes last in the table has most of what sets the family apart.
FAMILIES = {case.split("/")[0]: case for case in tiny_families.CASES if not case.startswith("llama/")}


@pytest.mark.parametrize("case", CASES)
def test_the_smoothed_model_computes_the_same(case, tmp_path):
    check_smoothed(random_checkpoint(CASES[case]), prompts(CASES[case]), tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_smoothed_model_of_every_family_computes_the_same(family, tmp_path):
    (tmp_path / "source").mkdir()
    case = FAMILIES[family]
    check_smoothed(
        open_checkpoint(tiny_families.write(case, tmp_path / "source")), tiny_families.prompts(case), tmp_path
    )


def check_smoothed(checkpoint, some_prompts, directory):
    logits = []
    observed = directory / "observed"
    observed.mkdir()
    smoothed = SmoothedCheckpoint(checkpoint)
    build_decoder(smoothed, Fp32(), observed, observed=True)
    reach = smoothed.original_reach(observe(observed, smoothed.config, some_prompts[2]))
    build_decoder(checkpoint, Fp32(), observed, observed=True)
    plain = observe(observed, checkpoint.config, some_prompts[2])
    inner = checkpoint.config.intermediate_size
    for found, true in zip(reach, plain, strict=True):
        np.testing.assert_allclose(found[:inner], true[:inner], rtol=1e-3, atol=1e-5)
    for number, source in enumerate((checkpoint, smoothed, SmoothedCheckpoint(checkpoint, reach))):
        target = directory / str(number)
        target.mkdir()
        build_decoder(source, Fp32(), target)
        runner = OnnxRunner(target, source.config, num_slots=1, context=200, threads=1, invariant=True)
        logits.append(runner.step([Row(0, some_prompts[-1], 0, Want.ALL)]).copy())
        runner.close()
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-4)
    np.testing.assert_allclose(logits[2], logits[0], atol=2e-4)
    assert all((channels > 0).any() for channels in reach)
    changed = ["mlp.up_proj", "mlp.down_proj"]
    if checkpoint.config.norms.before_attention is not None:
        changed += ["self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj"]
    for name in (f"model.layers.1.{module}.weight" for module in changed):
        assert not np.allclose(SmoothedCheckpoint(checkpoint, reach).tensor(name), checkpoint.tensor(name))
