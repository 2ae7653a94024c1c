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

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from arriero.models.encoders.encoder import EncoderCheckpoint
from arriero.runners.onnx.builder import CONTRIB, GraphBuilder
from arriero.runners.onnx.formats import Format, linear

MASKED = -1e9
"""What attention adds to the scores of padding."""

LEAST: Mapping[str, float] = {"relu": 0.0, "gelu": -0.17, "gelu_tanh": -0.1701, "silu": -0.2785}
"""A little below the smallest value that each activation function has."""


def build_encoder(
    checkpoint: EncoderCheckpoint,
    weights: Format,
    directory: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    reach: Mapping[str, NDArray[np.float32]] | None = None,
    observed: bool = False,
) -> None:
    """Write the graph and the weights of a checkpoint into `directory`; `progress(done, total)` counts layers.

    An `observed` graph has further outputs `reach.NAME`, float32 [hidden]: the largest magnitude of each channel
    that the linear layer of that name reads from a norm. With these, by name, in `reach`, channels are evened out
    before they are quantised. Raises `ModelLoadError` for a damaged tensor.
    """
    with GraphBuilder(directory) as graph:
        _Encoder(graph, checkpoint, weights, reach or {}, observed).build(progress or (lambda done, total: None))
        graph.save()


class _Encoder:
    """Appends the layers of one checkpoint to one graph."""

    def __init__(
        self,
        graph: GraphBuilder,
        checkpoint: EncoderCheckpoint,
        weights: Format,
        reach: Mapping[str, NDArray[np.float32]],
        observed: bool,
    ) -> None:
        self.graph = graph
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.weights = weights
        self.reach = reach
        self.observed = observed
        self._shared_bias = ""

    def build(self, progress: Callable[[int, int], None]) -> None:
        graph, config = self.graph, self.config
        graph.input("places", np.int64, ["batch", "length"])
        graph.input("lengths", np.int32, ["batch"])
        graph.input("kept", np.int64, ["tokens"])
        graph.input("zero_points", np.uint8, ["tokens"])
        states = self._norm("embeddings.norm", self._embeddings())
        for layer in range(config.num_layers):
            progress(layer, config.num_layers)
            states = (self._pre_norm_layer if config.pre_norm else self._post_norm_layer)(layer, states)
        if config.pre_norm:
            states = self._norm("final_norm", states)
        graph.node("Identity", [states], ["states"])
        graph.output("states", np.float32, ["tokens", config.hidden_size])
        progress(config.num_layers, config.num_layers)

    def _post_norm_layer(self, layer: int, states: str) -> str:
        graph, prefix = self.graph, f"layers.{layer}"
        attended = graph.op("Add", [states, self._attention(layer, states)])
        states = self._norm(f"{prefix}.attention.norm", attended)
        return self._norm(f"{prefix}.mlp.norm", graph.op("Add", [states, self._mlp(layer, states)]))

    def _pre_norm_layer(self, layer: int, states: str) -> str:
        graph, prefix = self.graph, f"layers.{layer}"
        normed = self._norm(f"{prefix}.attention.norm", states) if layer else states
        states = graph.op("Add", [states, self._attention(layer, normed)])
        return graph.op("Add", [states, self._mlp(layer, self._norm(f"{prefix}.mlp.norm", states))])

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
        local = layer in config.local_layers
        qkv = self._linear(f"{prefix}.qkv", states, normed=True)
        padded = graph.op("Gather", [qkv, "places"], axis=0)
        queries, keys, values = (f"{prefix}.{part}" for part in ("queries", "keys", "values"))
        graph.node("Split", [padded], [queries, keys, values], axis=2, num_outputs=3)
        if config.rope_theta:
            theta = config.local_rope_theta if local else config.rope_theta
            queries, keys = self._turned(queries, theta), self._turned(keys, theta)
        attended = graph.op(
            "MultiHeadAttention",
            [queries, keys, values, "", "lengths", self._bias(local)],
            domain=CONTRIB,
            num_heads=config.num_heads,
            mask_filter_value=MASKED,
        )
        flat = graph.op("Reshape", [attended], ints=[-1, config.hidden_size])
        return self._linear(f"{prefix}.output", graph.op("Gather", [flat, "kept"], axis=0))

    def _turned(self, value: str, theta: float) -> str:
        """Queries or keys with rotary positions; every padded row starts at position 0."""
        size = self.config.head_dim
        angles = np.arange(self.config.context)[:, None] * theta ** -(np.arange(0, size, 2) / size)
        names = [
            self.graph.shared(f"{function.__name__}.{theta}", function(angles).astype(np.float32))
            for function in (np.cos, np.sin)
        ]
        return self.graph.op("RotaryEmbedding", [value, self.graph.ints(0), *names], domain=CONTRIB)

    def _bias(self, local: bool) -> str:
        """What is added to attention's scores by how far apart two tokens are, [1, heads or 1, length, length]."""
        if self.config.relative_buckets:
            by_distance = relative_biases(self.checkpoint.tensor("relative_bias.weight"), self.config.context)
        elif local:
            distances = np.arange(1 - self.config.context, self.config.context)
            by_distance = np.where(abs(distances) <= self.config.local_reach, 0, MASKED)[None].astype(np.float32)
        else:
            return ""
        if not self._shared_bias:
            graph = self.graph
            length = graph.op("Squeeze", [graph.op("Shape", ["places"], start=1, end=2)], ints=[0])
            zero, one = (graph.shared(f"int_{value}", np.array(value)) for value in (0, 1))
            columns = graph.op("Range", [zero, length, one])
            farthest = graph.shared("farthest", np.array(self.config.context - 1))
            shifted = graph.op("Add", [graph.op("Unsqueeze", [columns], ints=[0]), farthest])
            apart = graph.op("Sub", [shifted, graph.op("Unsqueeze", [columns], ints=[1])])
            table = graph.constant("bias_by_distance", by_distance)
            found = graph.op("Gather", [table, apart], axis=1)
            self._shared_bias = graph.op("Unsqueeze", [found], ints=[0])
        return self._shared_bias

    def _mlp(self, layer: int, states: str) -> str:
        graph, config = self.graph, self.config
        prefix = f"layers.{layer}.mlp"
        inner = self._linear(f"{prefix}.inner", states, normed=True)
        if config.gated:
            activated, factor = f"{prefix}.activated", f"{prefix}.factor"
            graph.node("Split", [inner], [activated, factor], axis=1, num_outputs=2)
            active = graph.op("Mul", [self._activate(activated), factor])
        else:
            active = self._activate(inner)
        return self._linear(f"{prefix}.output", active, least=None if config.gated else LEAST.get(config.activation))

    def _activate(self, value: str) -> str:
        graph, activation = self.graph, self.config.activation
        if activation == "relu":
            return graph.op("Relu", [value])
        if activation == "silu":
            return graph.op("QuickGelu", [value], domain=CONTRIB, alpha=1.0)  # x * sigmoid(x)
        return graph.op("Gelu", [value], approximate="tanh" if activation == "gelu_tanh" else "none")

    def _linear(self, name: str, value: str, *, normed: bool = False, least: float | None = None) -> str:
        graph = self.graph
        weight = self.checkpoint.tensor(f"{name}.weight")
        if normed and self.observed:
            graph.node("ReduceMax", [graph.op("Abs", [value]), graph.ints(0)], [f"reach.{name}"], keepdims=0)
            graph.output(f"reach.{name}", np.float32, [self.config.hidden_size])
        if name in self.reach:
            factors = evening_factors(self.reach[name], weight)
            value = graph.op("Mul", [value, graph.constant(f"{name}.evening", 1 / factors)])
            weight = weight * factors
        rows = self.weights.rows(graph, value, zero_points="zero_points", least=least)
        product = linear(graph, self.weights, rows, f"{name}.weight", weight)
        bias = f"{name}.bias"
        return graph.op("Add", [product, self._constant(bias)]) if bias in self.checkpoint else product

    def _norm(self, name: str, value: str) -> str:
        parts = [self._constant(f"{name}.{kind}") for kind in ("weight", "bias") if f"{name}.{kind}" in self.checkpoint]
        return self.graph.op("LayerNormalization", [value, *parts], epsilon=self.config.norm_epsilon)

    def _constant(self, name: str) -> str:
        return self.graph.shared(name, self.checkpoint.tensor(name))


def evening_factors(reach: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """What each channel is divided by before it is quantised, and its weights multiplied by: see `smoothing`.

    A norm's channels that stand out would leave the others few steps of the row's scale.
    """
    largest, least = np.abs(weight).max(axis=0), np.float32(1e-8)
    evened: NDArray[np.float32] = (reach + reach.mean() / 1000 + least) / (largest + largest.max() / 1000 + least)
    return np.sqrt(evened)


def relative_biases(table: NDArray[np.float32], context: int) -> NDArray[np.float32]:
    """MPNet's attention biases [heads, 2 * context - 1] by distance, from -(context - 1) on, of its table by bucket.

    Half of the buckets are for tokens behind, half for those before; the first half of each for one distance each,
    the others for distances up to 128 in steps that grow logarithmically (Raffel et al. 2020, T5).
    """
    distances = -np.arange(1 - context, context)
    half = len(table) // 2
    exact = half // 2
    far = np.maximum(abs(distances), 1).astype(np.float32) / np.float32(exact)
    steps = np.log(far) / np.float32(math.log(128 / exact)) * np.float32(half - exact)
    buckets = np.where(abs(distances) < exact, abs(distances), np.minimum(exact + steps.astype(np.int64), half - 1))
    return np.ascontiguousarray(table[buckets + np.where(distances < 0, half, 0)].T)
