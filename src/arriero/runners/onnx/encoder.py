"""The encoder graph: tokens of many inputs in, their last hidden states out.

Tokens of all inputs lie behind each other without padding, so that linear layers and norms compute nothing in vain;
only attention works on padded rows, which are gathered for it and gathered back.

    ids         int64   [tokens]
    positions   int64   [tokens]            rows of the table of positions, or what rotary embeddings turn by
    types       int64   [tokens]            segments, where the model tells them apart
    places      int64   [batch, length]     for each padded place the token that lies there; padding names any token
    lengths     int32   [batch]             tokens of each input
    kept        int64   [tokens]            for each token its place among all padded ones
    zero_points uint8   [tokens]            128 each (read by int8 products)
    states      float32 [tokens, hidden]
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from arriero.models.encoder import EncoderCheckpoint
from arriero.runners.onnx.builder import CONTRIB, GraphBuilder
from arriero.runners.onnx.formats import Format, Rows, linear

MASKED = -1e9
"""What attention adds to the scores of padding."""


def build_encoder(
    checkpoint: EncoderCheckpoint,
    weights: Format,
    directory: Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the graph and the weights of a checkpoint into `directory`; `progress(done, total)` counts layers.

    Raises `ModelLoadError` for a damaged tensor.
    """
    with GraphBuilder(directory) as graph:
        _Encoder(graph, checkpoint, weights).build(progress or (lambda done, total: None))
        graph.save()


class _Encoder:
    """Appends the layers of one checkpoint to one graph."""

    def __init__(self, graph: GraphBuilder, checkpoint: EncoderCheckpoint, weights: Format) -> None:
        self.graph = graph
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.weights = weights

    def build(self, progress: Callable[[int, int], None]) -> None:
        graph, config = self.graph, self.config
        graph.input("places", np.int64, ["batch", "length"])
        graph.input("lengths", np.int32, ["batch"])
        graph.input("kept", np.int64, ["tokens"])
        graph.input("zero_points", np.uint8, ["tokens"])
        states = self._norm("embeddings.norm", self._embeddings())
        for layer in range(config.num_layers):
            progress(layer, config.num_layers)
            attended = self._attention(layer, states)
            states = self._add_norm(f"layers.{layer}.attention.norm", states, attended)
            states = self._add_norm(f"layers.{layer}.mlp.norm", states, self._mlp(layer, states))
        graph.node("Identity", [states], ["states"])
        graph.output("states", np.float32, ["tokens", config.hidden_size])
        progress(config.num_layers, config.num_layers)

    def _embeddings(self) -> str:
        graph = self.graph
        total = ""
        for table, index in (("word", "ids"), ("position", "positions"), ("type", "types")):
            name = f"embeddings.{table}.weight"
            if name in self.checkpoint:
                found = self._constant(name)
                if table != "type" or self.config.num_types > 1:
                    graph.input(index, np.int64, ["tokens"])
                    found = graph.op("Gather", [found, index], axis=0)
                total = graph.op("Add", [total, found]) if total else found
        return total

    def _attention(self, layer: int, states: str) -> str:
        graph, config = self.graph, self.config
        prefix = f"layers.{layer}.attention"
        qkv = self._linear(f"{prefix}.qkv", self._rows(states))
        padded = graph.op("Gather", [qkv, "places"], axis=0)
        parts = [f"{prefix}.{part}" for part in ("queries", "keys", "values")]
        graph.node("Split", [padded], parts, axis=2, num_outputs=3)
        attended = graph.op(
            "MultiHeadAttention",
            [*parts, "", "lengths"],
            domain=CONTRIB,
            num_heads=config.num_heads,
            mask_filter_value=MASKED,
        )
        flat = graph.op("Reshape", [attended], ints=[-1, config.hidden_size])
        return self._linear(f"{prefix}.output", self._rows(graph.op("Gather", [flat, "kept"], axis=0)))

    def _mlp(self, layer: int, states: str) -> str:
        prefix = f"layers.{layer}.mlp"
        inner = self._linear(f"{prefix}.inner", self._rows(states))
        active = self._activate(inner)
        return self._linear(f"{prefix}.output", self._rows(active))

    def _activate(self, value: str) -> str:
        graph, activation = self.graph, self.config.activation
        if activation == "relu":
            return graph.op("Relu", [value])
        if activation == "silu":
            return graph.op("QuickGelu", [value], domain=CONTRIB, alpha=1.0)  # x * sigmoid(x)
        return graph.op("Gelu", [value], approximate="tanh" if activation == "gelu_tanh" else "none")

    def _linear(self, name: str, rows: Rows) -> str:
        weight, bias = f"{name}.weight", f"{name}.bias"
        product = linear(self.graph, self.weights, rows, weight, self.checkpoint.tensor(weight))
        return self.graph.op("Add", [product, self._constant(bias)]) if bias in self.checkpoint else product

    def _rows(self, value: str) -> Rows:
        return self.weights.rows(self.graph, value, zero_points="zero_points")

    def _norm(self, name: str, value: str) -> str:
        scale, shift = self._constant(f"{name}.weight"), self._constant(f"{name}.bias")
        return self.graph.op("LayerNormalization", [value, scale, shift], epsilon=self.config.norm_epsilon)

    def _add_norm(self, name: str, residual: str, branch: str) -> str:
        return self.graph.op(
            "SkipLayerNormalization",
            [residual, branch, self._constant(f"{name}.weight"), self._constant(f"{name}.bias")],
            domain=CONTRIB,
            epsilon=self.config.norm_epsilon,
        )

    def _constant(self, name: str) -> str:
        return self.graph.shared(name, self.checkpoint.tensor(name))
