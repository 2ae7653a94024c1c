"""LoRA adapters beside a converted model: a second graph over the same weights, for rows of any adapter or none.

The graph is the base's, with something added to linear layers. All adapters' A matrices of a layer stand side by side
[in, sum of ranks], their B matrices one below the other [sum of ranks, out]. Each row's product with the first is
multiplied by a mask that is 1 in the columns of the row's own adapter and 0 elsewhere. The other adapters then add
zeros, so a row is what it would be if its adapter were alone.

Files of a directory with adapters:

    model.onnx, weights.bin     the graph, and the base's weights, which are the same file as in the base's directory
    adapters.bin                what the adapters add
    embeddings.npy              the base's table, the same file too
    embeddings.N.npy            the table of adapter N, if it has one of its own
    adapters.json               a `Vocabulary` for the base and for each adapter

Inputs and outputs beyond those of `arriero.runners.onnx.decoder`:

    adapter         int64   [batch * tokens]            each row's adapter, 0 for the base
    logits.N.rows   int64   [logits.N.rows]             which of the wanted rows are for adapter N's own head
    logits.N        float32 [logits.N.rows, vocabulary]
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from arriero.models.adapters.lora import Adapter
from arriero.models.architecture import Checkpoint, DecoderConfig
from arriero.runners.onnx.builder import MODEL_FILE, WEIGHTS_FILE, GraphBuilder, Linear, linears
from arriero.runners.onnx.decoder import EMBEDDINGS_FILE, HEAD_WEIGHT, add_head, save_embeddings
from arriero.runners.onnx.formats import Format
from arriero.runners.onnx.smoothing import SmoothedAdapter

ABOUT_FILE = "adapters.json"
_WEIGHTS_FILE = "adapters.bin"
_SMALLEST = np.float32(1e-30)
"""A row of zeros lacks a factor of 0, and what is added to it is 0: divided by this it stays 0."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of the base or of an adapter."""

    size: int
    embeddings: str = EMBEDDINGS_FILE
    """The file of the table that they are looked up in."""
    head: str = ""
    """Suffix of the graph's output that has their logits."""


def read_vocabularies(directory: Path, base_size: int) -> list[Vocabulary]:
    """The base's vocabulary, then one an adapter."""
    file = directory / ABOUT_FILE
    if not file.exists():
        return [Vocabulary(base_size)]
    return [Vocabulary(**entry) for entry in json.loads(file.read_bytes())]


def build_adapters(
    base: Path,
    checkpoint: Checkpoint,
    adapters: Sequence[Adapter],
    weights: Format,
    reach: Sequence[NDArray[np.float32]] | None,
    directory: Path,
) -> None:
    """Write a graph with adapters into `directory`, from what `build_decoder` made of their `checkpoint` in `base`.

    `reach` is what the base was smoothed with, if its format is smooth.
    """
    sources = [
        SmoothedAdapter(adapter, reach, rotated=weights.rotated) if weights.smooth else adapter for adapter in adapters
    ]
    for name in (WEIGHTS_FILE, EMBEDDINGS_FILE):
        _share(base / name, directory / name)
    model = onnx.load(base / MODEL_FILE, load_external_data=False)
    found = {linear.product: linear for linear in linears(model)}
    with GraphBuilder(directory, weights_file=_WEIGHTS_FILE, prefix="adapters.") as graph:
        graph.input("adapter", np.int64, ["positions"])
        nodes = []
        for node in model.graph.node:
            nodes.append(node)
            linear = found.get(node.output[0])
            change = _change(linear, checkpoint.config, sources) if linear else None
            if linear and change:
                node.output[0] = f"{linear.product}.base"
                start = len(graph.nodes)
                _add(graph, linear, change, len(sources))
                nodes += graph.nodes[start:]
        start = len(graph.nodes)
        vocabularies = [Vocabulary(checkpoint.config.vocab_size)]
        for number, (adapter, source) in enumerate(zip(adapters, sources, strict=True), 1):
            vocabularies.append(_add_vocabulary(graph, number, adapter, source, weights, directory))
        nodes += graph.nodes[start:]
    (directory / ABOUT_FILE).write_text(json.dumps([asdict(vocabulary) for vocabulary in vocabularies]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(graph.initializers)
    model.graph.input.extend(graph.inputs)
    model.graph.output.extend(graph.outputs)
    (directory / MODEL_FILE).write_bytes(model.SerializeToString())


@dataclass(frozen=True, slots=True)
class _Change:
    """What all adapters do to one linear layer of the graph."""

    into: NDArray[np.float32]
    """[sum of ranks, in]."""
    out: NDArray[np.float32]
    """[out, sum of ranks]."""
    owners: tuple[int, ...]
    """Whose each of the columns between them is."""


def _change(linear: Linear, config: DecoderConfig, adapters: Sequence[Adapter | SmoothedAdapter]) -> _Change | None:
    """None where no adapter changes the layer; the head is not changed but replaced."""
    into, out, owners = [], [], []
    parts = [] if linear.name == HEAD_WEIGHT else _parts(linear.name.removesuffix(".weight"), config)
    for number, adapter in enumerate(adapters, 1):
        for position, (module, _) in enumerate(parts):
            delta = adapter.delta(module)
            if delta is None:
                continue
            into.append(delta.into)
            rank = len(delta.into)
            blocks = [np.zeros((len(delta.out) if size is None else size, rank), np.float32) for _, size in parts]
            blocks[position] = delta.out
            out.append(np.concatenate(blocks))
            owners += [number] * rank
    return _Change(np.concatenate(into), np.concatenate(out, axis=1), tuple(owners)) if owners else None


def _parts(module: str, config: DecoderConfig) -> list[tuple[str, int | None]]:
    """The checkpoint's layers of which the graph has made one, and how many outputs each has; None: all of them."""
    if not module.endswith(".qkv_proj"):
        return [(module, None)]
    stem = module.removesuffix("qkv_proj")
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return [(f"{stem}q_proj", queries), (f"{stem}k_proj", keys), (f"{stem}v_proj", keys)]


def _add(graph: GraphBuilder, linear: Linear, change: _Change, num_adapters: int) -> None:
    """Give the layer's result, which now goes by another name, back under its own with the change added."""
    into = graph.constant(f"{linear.name}.into", np.ascontiguousarray(change.into.T))
    value = graph.op("MatMul", [linear.rows, into])
    value = graph.op("Mul", [value, _mask(graph, change.owners, num_adapters)])
    if linear.rows_scale:
        value = graph.op("Mul", [value, linear.rows_scale])
    if linear.product_scale:
        smallest = graph.shared("smallest", np.array(_SMALLEST))
        value = graph.op("Div", [value, graph.op("Max", [linear.product_scale, smallest])])
    added = graph.op("MatMul", [value, graph.constant(f"{linear.name}.out", np.ascontiguousarray(change.out.T))])
    graph.node("Add", [f"{linear.product}.base", added], [linear.product])


def _mask(graph: GraphBuilder, owners: tuple[int, ...], num_adapters: int) -> str:
    """For each row, 1 in the columns of its adapter; computed once for all layers with the same columns."""
    runs = (f"{number}x{len(list(run))}" for number, run in itertools.groupby(owners))
    name = f"mask_{'_'.join(runs)}"
    if not any(node.output[0] == name for node in graph.nodes):
        table = (np.arange(num_adapters + 1)[:, None] == np.array(owners)).astype(np.float32)
        graph.node("Gather", [graph.constant(f"{name}.table", table), "adapter"], [name], axis=0)
    return name


def _add_vocabulary(
    graph: GraphBuilder,
    number: int,
    adapter: Adapter,
    source: Checkpoint,
    weights: Format,
    directory: Path,
) -> Vocabulary:
    """Write an adapter's own embeddings and head, if it has any."""
    embeddings, head = EMBEDDINGS_FILE, ""
    if adapter.has_own_embeddings:
        embeddings = f"embeddings.{number}.npy"
        save_embeddings(source.config, source.tensor("model.embed_tokens.weight"), directory / embeddings)
    if adapter.has_own_head:
        head = f".{number}"
        add_head(graph, source.config, weights.head, source.tensor(HEAD_WEIGHT), head)
    return Vocabulary(adapter.config.vocab_size, embeddings, head)


def _share(source: Path, target: Path) -> None:
    """Have the same file in a second place, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
