"""The runners that the contract in test_contract.py is held against: add a line to SUBJECTS and yours is too."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from arriero.compute import Row, Runner
from arriero.models.adapters.lora import Adapter
from arriero.runners.native import load_runner as load_native
from arriero.runners.native.load import NativeWeights
from arriero.runners.onnx import load_runner
from arriero.runners.onnx.formats import WeightFormat
from arriero.runners.scripted import ScriptedRunner
from references.lora import write_adapter
from references.tiny_models import CASES, random_checkpoint


class Subject(NamedTuple):
    """A runner of at least 6 slots, 64 tokens of context and 50 tokens of vocabulary."""

    make: Callable[[Path], Runner]
    """Called with an empty directory of its own."""
    tolerance: float
    """How far logits may differ when only the company or the cutting of the prompt does; 0 is bit for bit."""


def scripted(directory: Path) -> Runner:
    return ScriptedRunner(vocab_size=60, num_slots=6, context=64, end_token_id=0)


def onnx(directory: Path, *, weights: WeightFormat) -> Runner:
    checkpoint = random_checkpoint(CASES["grouped"])
    return load_runner(checkpoint, weights=weights, slots=6, context=64, threads=1, cache=directory)


def native(directory: Path, *, case: str, weights: NativeWeights = "int8") -> Runner:
    checkpoint = random_checkpoint(CASES[case])
    return load_native(checkpoint, weights=weights, slots=6, context=64, threads=2, cache=directory)


class Adapted:
    """A runner all of whose rows have one adapter, the others being there as well."""

    def __init__(self, runner: Runner, adapter: int) -> None:
        self.runner, self.adapter = runner, adapter

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def step(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        return self.runner.step([replace(row, adapter=self.adapter) for row in rows])


def adapted(directory: Path, *, weights: WeightFormat) -> Any:
    checkpoint = random_checkpoint(CASES["grouped"])
    names = ("all_linear", "resized", "embeddings")
    adapters = [Adapter(write_adapter(name, directory / name), checkpoint) for name in names]
    runner = load_runner(
        checkpoint, weights=weights, slots=6, context=64, threads=1, cache=directory, adapters=adapters
    )
    return Adapted(runner, 2)


SUBJECTS = {
    "scripted": Subject(scripted, 0.0),
    "onnx-fp32": Subject(partial(onnx, weights="fp32"), 1e-4),
    "onnx-int8": Subject(partial(onnx, weights="int8"), 0.0),
    "onnx-fp32-adapter": Subject(partial(adapted, weights="fp32"), 1e-4),
    "onnx-int8-adapter": Subject(partial(adapted, weights="int8"), 0.0),
    "native": Subject(partial(native, case="like_smollm"), 0.0),
    "native-odd-sizes": Subject(partial(native, case="odd_sizes"), 0.0),
    "native-int4": Subject(partial(native, case="like_smollm", weights="int4"), 0.0),
    "native-int4-odd-sizes": Subject(partial(native, case="odd_sizes", weights="int4"), 0.0),
    "onnx-int4": Subject(partial(onnx, weights="int4"), 0.5),
}


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request, tmp_path_factory) -> Iterator[tuple[Runner, float]]:
    """Each runner in turn, with its tolerance."""
    made = SUBJECTS[request.param]
    runner = made.make(tmp_path_factory.mktemp(request.param))
    yield runner, made.tolerance
    runner.close()
