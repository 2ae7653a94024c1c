"""A change of coordinates that changes nothing else."""

import numpy as np
import pytest

from arriero.core import Row, Want
from arriero.runners.onnx.decoder import build_decoder
from arriero.runners.onnx.formats import Fp32
from arriero.runners.onnx.runner import OnnxRunner
from arriero.runners.onnx.smoothing import SmoothedCheckpoint, observe, rotate
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


@pytest.mark.parametrize("case", CASES)
def test_the_smoothed_model_computes_the_same(case, tmp_path):
    checkpoint = random_checkpoint(CASES[case])
    logits = []
    observed = tmp_path / "observed"
    observed.mkdir()
    smoothed = SmoothedCheckpoint(checkpoint)
    build_decoder(smoothed, Fp32(), observed, observed=True)
    reach = observe(observed, smoothed.config, prompts(CASES[case])[2])
    for number, source in enumerate((checkpoint, smoothed, SmoothedCheckpoint(checkpoint, reach))):
        directory = tmp_path / str(number)
        directory.mkdir()
        build_decoder(source, Fp32(), directory)
        runner = OnnxRunner(directory, source.config, num_slots=1, context=256, threads=1, invariant=True)
        logits.append(runner.step([Row(0, prompts(CASES[case])[-1], 0, Want.ALL)]).copy())
        runner.close()
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-4)
    np.testing.assert_allclose(logits[2], logits[0], atol=2e-4)
    assert all((channels > 0).any() for channels in reach)
