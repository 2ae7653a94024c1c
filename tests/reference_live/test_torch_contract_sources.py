"""The runner contract once more, for encoder-decoders: every slot has the same source before its first token."""

import inspect

import pytest

from arriero.runners.torch import load_runner
from reference_live.torch_models import save
from runners import test_contract

SOURCE = [17, 4, 30, 9, 2]
globals().update(
    {
        name: value
        for name, value in vars(test_contract).items()
        # These have no hidden states to give.
        if "states" not in name and not (callable(value) and "near" in inspect.signature(value).parameters)
    }
)


class Sourced:
    """A runner that encodes the source by itself, since the contract knows of none."""

    def __init__(self, runner):
        self._runner = runner
        self._encoded = set()

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def step(self, rows):
        for row in rows:
            if row.slot not in self._encoded:
                self._runner.encode(row.slot, SOURCE)
                self._encoded.add(row.slot)
        return self._runner.step(rows)

    def copy(self, pairs):
        self._runner.copy(pairs)
        held = set(self._encoded)
        for source, destination in pairs:
            (self._encoded.add if source in held else self._encoded.discard)(destination)

    def free(self, slot):
        self._runner.free(slot)
        self._encoded.discard(slot)


@pytest.fixture(scope="module", params=["t5", "bart", "led"])
def subject(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    save(request.param, directory)
    runner = Sourced(load_runner(directory, slots=6, context=64, threads=1).runner)
    yield runner, 1e-4
    runner.close()
