"""The runner contract of tests/runners, held against models of transformers; more families than one each way."""

from pathlib import Path

import pytest

from arriero.runners.torch import load_runner
from reference_live.torch_models import save
from runners.test_contract import *  # noqa: F403  # its tests and fixtures, which ask for `subject`

SUBJECTS = {"gpt2": ("fp32", 1e-4), "bloom": ("fp32", 1e-4), "llama": ("int8", 0.5), "mamba": ("fp32", 1e-4)}
"""Weight format, and how far logits may differ when only the company or the cutting of the prompt does."""


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request, tmp_path_factory):
    directory: Path = tmp_path_factory.mktemp(request.param)
    weights, tolerance = SUBJECTS[request.param]
    save(request.param, directory)
    runner = load_runner(directory, weights=weights, slots=6, context=64, threads=1).runner
    yield runner, tolerance
    runner.close()
