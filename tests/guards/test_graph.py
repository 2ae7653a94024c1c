"""How much graph a decoder is, and what a step of it takes around the graph."""

from collections import Counter
from dataclasses import replace

import onnx
import pytest

from arriero.compute import Row, Want
from arriero.runners.onnx import load_runner
from arriero.runners.onnx import runner as onnx_runner
from guards.counts import check
from references.tiny_models import CASES, random_checkpoint

SMOLLM = CASES["like_smollm"]

_LAYER = {
    "GroupQueryAttention": 1,
    "SkipSimplifiedLayerNormalization": 2,
    "QuickGelu": 1,
    "Mul": 1,
    "all": 12,
    "all around the layers": 14,
}
NODES = {
    "fp32": _LAYER | {"MatMul": 5},
    "int4": _LAYER | {"MatMulNBits": 5},
    "int8": _LAYER
    | {
        "MatMulIntegerToFloat": 5,
        "QuantizeLinear": 4,
        "Abs": 2,
        "ReduceMax": 2,
        "Mul": 5,
        "all": 26,
        "all around the layers": 15,
    },
}
"""Of each layer, by operator; reshapes cost nothing, they count as what makes up all."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("converted")


def operators(directory, weights, num_layers):
    cache = directory / f"{weights}-{num_layers}"
    config = replace(SMOLLM, num_layers=num_layers)
    load_runner(random_checkpoint(config), weights=weights, slots=2, context=64, threads=1, cache=cache).close()
    (model,) = cache.rglob("model.onnx")
    return Counter(node.op_type for node in onnx.load(model, load_external_data=False).graph.node)


@pytest.mark.parametrize("weights", NODES)
def test_nodes_of_the_graph(directory, weights):
    fewer, more = operators(directory, weights, 2), operators(directory, weights, 3)
    layer = more - fewer
    num_nodes = layer.total()
    del layer["Reshape"]
    layer["all"], layer["all around the layers"] = num_nodes, fewer.total() - 2 * num_nodes
    check(f"nodes in {weights}", layer, NODES[weights])


class Session:
    """A session that counts its runs and what is bound for them."""

    def __init__(self, session, counts):
        self._session = session
        self._counts = counts

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run_with_iobinding(self, binding):
        self._counts["runs"] += 1
        self._session.run_with_iobinding(binding.io)

    def io_binding(self):
        return Binding(self._session.io_binding(), self._counts)


class Binding:
    def __init__(self, io, counts):
        self.io = io
        self._counts = counts

    def bind_input(self, *arguments):
        self._counts["inputs"] += 1
        self.io.bind_input(*arguments)

    def bind_output(self, name, *arguments):
        self._counts["outputs"] += 1
        if name == "logits":
            self._counts["logits"] += arguments[3][0]
        self.io.bind_output(name, *arguments)


CHUNK = {"runs": 1, "inputs": 12, "outputs": 6, "logits": 0}
"""What the graph is asked for a chunk of a prompt, where it has two layers."""


@pytest.fixture
def counted(directory, monkeypatch):
    """A runner of two layers and eight slots, and a step of it that counts what is asked of its graph."""
    counts = Counter()
    open_session = onnx_runner.open_session
    monkeypatch.setattr(onnx_runner, "open_session", lambda *arguments: Session(open_session(*arguments), counts))
    runner = load_runner(
        random_checkpoint(replace(SMOLLM, num_layers=2)),
        weights="int8",
        slots=8,
        context=128,
        threads=1,
        cache=directory / "int8-2",
    )

    def step(*rows):
        counts.clear()
        runner.step(rows)
        return dict(counts)

    yield runner, step
    runner.close()


def test_a_step_of_rows_is_one_run_and_binds_nothing(counted):
    runner, step = counted
    for slot in range(5):
        runner.step([Row(slot, [1, 2, 3], 0)])
    first, second = ([Row(slot, [4], position) for slot in range(5)] for position in (3, 4))
    check("the first step of five rows", step(*first), CHUNK | {"logits": 5})
    check("every further one", step(*second), {"runs": 1})


def test_a_chunk_of_a_prompt_is_one_run(counted):
    _, step = counted
    twice = {name: 2 * count for name, count in CHUNK.items()}
    check("a chunk", step(Row(0, [1] * 64, 0, Want.NOTHING)), CHUNK)
    check("one that leaves attention a single token", step(Row(1, [1] * 65, 0)), twice | {"logits": 1})
    rows = [Row(2, [1] * 32, 0), Row(0, [1], 64), Row(1, [1], 65)]
    check("a chunk beside two rows", step(*rows), twice | {"logits": 3})


@pytest.mark.parametrize(("want", "num_logits"), [(Want.NOTHING, 0), (Want.LAST, 1), (Want.ALL, 40)])
def test_the_vocabulary_is_looked_at_where_a_token_is_wanted(counted, want, num_logits):
    _, step = counted
    check("a chunk of 40 tokens", step(Row(0, [1] * 40, 0, want)), CHUNK | {"logits": num_logits})


def test_rows_that_stay_are_not_moved(counted, monkeypatch):
    runner, _ = counted
    moved = Counter()
    for name in ("_move", "_exchange"):
        monkeypatch.setattr(runner._cache, name, lambda *arguments, name=name: moved.update([name]))
    for slot in range(4):
        runner.step([Row(slot, [1, 2], 0)])
    for position in range(2, 6):
        runner.step([Row(slot, [3], position) for slot in range(4)])
    check("four rows that come and stay", moved, {})
