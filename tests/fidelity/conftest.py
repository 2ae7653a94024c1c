"""Runners on checkpoints, and lines that are always shown."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arriero.compute import Runner
from arriero.models.architecture import Checkpoint
from arriero.models.checkpoint import open_checkpoint
from arriero.runners import native, onnx
from fidelity.form import PROOF

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
TINY = 256


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if PROOF:
        for item in items:
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def conversions() -> Iterator[Path]:
    """Where converted graphs lie until the tests are over; fp32 weights are large."""
    with tempfile.TemporaryDirectory(prefix="arriero-fidelity-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def real_checkpoint(smollm2_path: Path) -> Checkpoint:
    """The catalog's default model."""
    return open_checkpoint(smollm2_path)


@pytest.fixture(scope="module")
def open_runner(conversions: Path) -> Iterator[Callable[..., Runner]]:
    """Make a runner of a checkpoint; closed when the module's tests are over.

    `weights` alone are the ONNX engine's, "native int8" the native one's, where it computes the model.
    """
    runners: list[Runner] = []

    def make(checkpoint: Checkpoint, weights: str, slots: int, context: int, guesses: int = 0) -> Runner:
        engine, _, weights = weights.rpartition(" ")
        # ONNX Runtime's threads only wait for each other where there is next to nothing to compute.
        threads = THREADS if engine or checkpoint.config.hidden_size > TINY else 1
        options = {"slots": slots, "context": context, "threads": threads, "cache": conversions, "guesses": guesses}
        if not engine:
            runner: Runner = onnx.load_runner(checkpoint, weights=weights, **options)
        else:
            if reason := native.reason_against(checkpoint.config):
                pytest.skip(reason)
            runner = native.load_runner(checkpoint, weights=weights, **options)
        runners.append(runner)
        return runner

    yield make
    for runner in runners:
        runner.close()


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a line that is shown whether the test passes or not."""

    def show(line: str) -> None:
        with capsys.disabled():
            print(f"\n{request.node.name}: {line}", end="", flush=True)

    return show
