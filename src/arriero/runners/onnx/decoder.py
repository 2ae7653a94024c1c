"""The decoder graph: embeddings in, logits or states of some positions out, keys and values updated in place.

One graph serves a prompt chunk of one row ([1, tokens]) and one decode step of many rows ([rows, 1]).
Inside, activations are flattened to [positions, size]; only attention needs both dimensions.

    hidden          float32 [batch, tokens, hidden]         embeddings, looked up outside
    wanted          int64   [wanted]                        flat positions that may get logits
    logits.rows     int64   [logits.rows]                   which of those do
    shown           int64   [shown]                         flat positions whose states are given
    seqlens_k       int32   [batch]                         tokens a row holds after this step, minus one
    total_length    int32   []                              the largest number of tokens a row then holds
    packed_shape    int64   [3]                             (batch, tokens, -1)
    zero_points     uint8   [batch * tokens]                128 each (read by int8 products)
    past.N.key ...  float32 [batch, kv_heads, length, head] bound to the same memory as present.N.key ...
    logits          float32 [logits.rows, vocabulary]
    states          float32 [shown, hidden]                 after the last norm, in the checkpoint's own coordinates
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from arriero.models.architecture import Checkpoint, DecoderConfig
from arriero.models.decoders.rope import inverse_frequencies, rotation_scale
from arriero.runners.onnx.builder import CONTRIB, GraphBuilder
from arriero.runners.onnx.formats import Format, Rows, linear, unscaled_linear
from arriero.runners.onnx.padding import ROTATION_MULTIPLE

EMBEDDINGS_FILE = "embeddings.npy"
HEAD_WEIGHT = "lm_head.weight"
NORMED = "normed"
"""The value [wanted, hidden] that a head reads."""
_ROTATIONS = {False: ("cosines", "sines"), True: ("local.cosines", "local.sines")}
"""By whether a layer has positions of its own for its window."""
STATES_WEIGHT = "model.states.weight"
"""A tensor [hidden, hidden] of a checkpoint in other coordinates: turns its last states into the original's."""


def build_decoder(
    checkpoint: Checkpoint,
    weights: Format,
    directory: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    observed: bool = False,
) -> None:
    """Write the graph, its weights and the embedding table of a checkpoint into `directory`.

    `progress(done, total)` counts layers. An `observed` graph has further outputs `reach.N`, float32 [intermediate +
    2 * hidden]: the largest magnitude in layer N of each channel between up_proj and down_proj, of the rows that
    attention reads, and of those that the MLP reads.
    Raises `ModelLoadError` for a missing or misshapen tensor.
    """
    with GraphBuilder(directory) as graph:
        _Decoder(graph, checkpoint, weights, observed).build(directory, progress or (lambda done, total: None))
        graph.save()


class _Decoder:
    """Appends the layers of one checkpoint to one graph."""

    def __init__(self, graph: GraphBuilder, checkpoint: Checkpoint, weights: Format, observed: bool) -> None:
        self.graph = graph
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.weights = weights
        self.observed = observed
        self.reaches: list[str] = []
        """Of one layer, as they are found: of what attention reads, what the MLP reads, and its inner channels."""

    def build(self, directory: Path, progress: Callable[[int, int], None]) -> None:
        graph, config, norms = self.graph, self.config, self.config.norms
        embeddings = self.checkpoint.tensor("model.embed_tokens.weight")
        save_embeddings(config, embeddings, directory / EMBEDDINGS_FILE)
        self._declare_inputs()
        residual = graph.op("Reshape", ["hidden"], ints=[-1, config.hidden_size])
        first = _norm_name(0, norms.before_attention)
        normed = residual if first is None else self._norm(first, residual)
        for layer in range(config.num_layers):
            progress(layer, config.num_layers)
            attended = self._branch(layer, norms.after_attention, self._attention(layer, normed))
            normed, residual = self._add_norm(_norm_name(layer, norms.before_mlp), residual, attended)
            branch = self._branch(layer, norms.after_mlp, self._mlp(layer, normed))
            if layer + 1 < config.num_layers:
                normed, residual = self._add_norm(_norm_name(layer + 1, norms.before_attention), residual, branch)
        self._states(residual, branch)
        # The vocabulary projection is a fifth of a small model's arithmetic: only where it is wanted.
        branch, residual = (graph.op("Gather", [value, "wanted"], axis=0) for value in (branch, residual))
        normed, _ = self._add_norm("model.norm.weight", residual, branch)
        self._logits(normed, embeddings)
        progress(config.num_layers, config.num_layers)

    def _logits(self, normed: str, embeddings: NDArray[np.float32]) -> None:
        graph, config = self.graph, self.config
        vectors = embeddings if config.tie_embeddings else self.checkpoint.tensor(HEAD_WEIGHT)
        graph.node("Identity", [scaled(graph, normed, config.logits_scale)], [NORMED])
        add_head(graph, config, self.weights.head, vectors)

    def _states(self, residual: str, branch: str) -> None:
        """States have a norm of their own, because a run that shows none, as decoding does, is to pay for none."""
        graph, name = self.graph, "model.norm.weight"
        total = graph.op("Add", [graph.op("Gather", [value, "shown"], axis=0) for value in (residual, branch)])
        gamma = graph.constant(f"states.{name}", self.checkpoint.tensor(name))
        normed = graph.op("SimplifiedLayerNormalization", [total, gamma], epsilon=self.config.norm_epsilon)
        if STATES_WEIGHT in self.checkpoint:
            basis = np.ascontiguousarray(self.checkpoint.tensor(STATES_WEIGHT).T)
            graph.node("MatMul", [normed, graph.constant(STATES_WEIGHT, basis)], ["states"])
        else:
            graph.node("Identity", [normed], ["states"])
        graph.output("states", np.float32, ["shown", self.config.hidden_size])

    def _declare_inputs(self) -> None:
        graph, config = self.graph, self.config
        graph.input("hidden", np.float32, ["batch", "tokens", config.hidden_size])
        graph.input("wanted", np.int64, ["wanted"])
        graph.input("shown", np.int64, ["shown"])
        graph.input("seqlens_k", np.int32, ["batch"])
        graph.input("total_length", np.int32, [])
        graph.input("packed_shape", np.int64, [3])
        graph.input("zero_points", np.uint8, ["positions"])
        positions = np.arange(config.context, dtype=np.float32)
        local = {config.local_rope_theta is not None and window is not None for window in config.windows or (None,)}
        for each in sorted(local):
            frequencies = inverse_frequencies(config, local=each)
            # Padded heads have zeros there, which turn into zeros.
            angles = positions[:, None] * np.pad(frequencies, (0, -len(frequencies) % ROTATION_MULTIPLE))
            scale = np.float32(rotation_scale(config, local=each))
            graph.constant(_ROTATIONS[each][0], np.cos(angles) * scale)
            graph.constant(_ROTATIONS[each][1], np.sin(angles) * scale)

    def _norm(self, name: str, value: str) -> str:
        gamma = self.graph.constant(name, self.checkpoint.tensor(name))
        return self.graph.op("SimplifiedLayerNormalization", [value, gamma], epsilon=self.config.norm_epsilon)

    def _add_norm(self, name: str | None, residual: str, branch: str) -> tuple[str, str]:
        """The normalised sum of residual and branch, and the sum itself; without a norm they are the same."""
        if name is None:
            total = self.graph.op("Add", [residual, branch])
            return total, total
        gamma = self.graph.constant(name, self.checkpoint.tensor(name))
        normed, total = f"{name}.normed", f"{name}.sum"
        self.graph.node(
            "SkipSimplifiedLayerNormalization",
            [residual, branch, gamma],
            [normed, "", "", total],
            domain=CONTRIB,
            epsilon=self.config.norm_epsilon,
        )
        return normed, total

    def _branch(self, layer: int, norm: str | None, value: str) -> str:
        """What attention or the MLP give, as it is added to the residual stream."""
        name = _norm_name(layer, norm)
        return scaled(self.graph, value if name is None else self._norm(name, value), self.config.residual_scale)

    def _attention(self, layer: int, normed: str) -> str:
        graph, config = self.graph, self.config
        prefix = f"model.layers.{layer}.self_attn"
        parts = [f"{prefix}.{part}_proj" for part in "qkv"]
        self._observe(normed)
        rows = self.weights.rows(graph, normed, zero_points="zero_points", normed=True)
        qkv = linear(
            graph,
            self.weights,
            rows,
            f"{prefix}.qkv_proj.weight",
            np.concatenate([self.checkpoint.tensor(f"{part}.weight") for part in parts]),
        )
        if config.attention_bias:
            bias = np.concatenate([self.checkpoint.tensor(f"{part}.bias") for part in parts])
            qkv = graph.op("Add", [qkv, graph.constant(f"{prefix}.qkv_proj.bias", bias)])
        if config.qk_norm is None:
            packed = [graph.op("Reshape", [qkv, "packed_shape"]), "", ""]
        else:
            packed = self._normed_heads(prefix, qkv)
        attended = self._attended(layer, packed)
        flat = graph.op("Reshape", [attended], ints=[-1, config.num_heads * config.head_dim])
        output = self._layer(f"{prefix}.o_proj", self.weights.rows(graph, flat, zero_points="zero_points"))
        return self._bias(f"{prefix}.o_proj.bias", output) if config.output_bias else output

    def _normed_heads(self, prefix: str, qkv: str) -> list[str]:
        """Queries, keys and values [batch, tokens, size], the first two normalised."""
        graph, config = self.graph, self.config
        names = [f"{prefix}.{part}" for part in "qkv"]
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        graph.node("Split", [qkv, graph.ints(queries, keys, keys)], names, axis=1)
        query, key, value = names
        if config.qk_norm == "head":
            query, key = (graph.op("Reshape", [name], ints=[-1, config.head_dim]) for name in (query, key))
        query, key = self._norm(f"{prefix}.q_norm.weight", query), self._norm(f"{prefix}.k_norm.weight", key)
        return [graph.op("Reshape", [name, "packed_shape"]) for name in (query, key, value)]

    def _attended(self, layer: int, packed: list[str]) -> str:
        """What a layer's tokens attend to, [batch, tokens, heads * head_dim]; their keys and values go to the cache."""
        graph, config = self.graph, self.config
        cache: list[int | str] = ["batch", config.num_kv_heads, "length", config.head_dim]
        past = [graph.input(f"past.{layer}.{kind}", np.float32, cache) for kind in ("key", "value")]
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        window = config.window(layer)
        options: dict[str, float | None] = {
            "local_window_size": window,
            "scale": config.attention_scale,
            "softcap": config.attention_softcap,
        }
        rotations = _ROTATIONS[window is not None and config.local_rope_theta is not None]
        turned = layer not in config.layers_without_positions
        attended = f"attended.{layer}"
        graph.node(
            "GroupQueryAttention",
            [*packed, *past, "seqlens_k", "total_length", *(rotations if turned else ())],
            [attended, *present],
            domain=CONTRIB,
            num_heads=config.num_heads,
            kv_num_heads=config.num_kv_heads,
            do_rotary=int(turned),
            **{name: value for name, value in options.items() if value is not None},
        )
        for name in present:
            graph.output(name, np.float32, cache)
        return attended

    def _mlp(self, layer: int, normed: str) -> str:
        graph = self.graph
        prefix = f"model.layers.{layer}.mlp"
        self._observe(normed)
        rows = self.weights.rows(graph, normed, zero_points="zero_points", normed=True)
        gate = self._layer(f"{prefix}.gate_proj", rows)
        if self.config.mlp_bias:
            gate = self._bias(f"{prefix}.gate_proj.bias", gate)
            up = self._bias(f"{prefix}.up_proj.bias", self._layer(f"{prefix}.up_proj", rows))
            lacking = None
        else:
            # The rows' scale is positive and passes through the quantisation of what follows: carry it along.
            name = f"{prefix}.up_proj.weight"
            up = unscaled_linear(graph, self.weights, rows, name, self.checkpoint.tensor(name))
            lacking = rows.scale
        inner = graph.op("Mul", [self._active(gate), up])
        self._observe(inner if lacking is None or not self.observed else graph.op("Mul", [inner, lacking]), layer)
        rows = self.weights.rows(graph, inner, scale=lacking, zero_points="zero_points")
        output = self._layer(f"{prefix}.down_proj", rows)
        return self._bias(f"{prefix}.down_proj.bias", output) if self.config.mlp_bias else output

    def _observe(self, rows: str, layer: int | None = None) -> None:
        """Find how far each channel reaches, and with a layer's inner channels make all of them an output."""
        if not self.observed:
            return
        graph, name = self.graph, f"reach.{layer}"
        self.reaches.append(graph.op("ReduceMax", [graph.op("Abs", [rows])], ints=[0], keepdims=0))
        if layer is not None:
            attention, mlp, inner = self.reaches
            graph.node("Concat", [inner, attention, mlp], [name], axis=0)
            graph.output(name, np.float32, [self.config.intermediate_size + 2 * self.config.hidden_size])
            self.reaches.clear()

    def _active(self, gate: str) -> str:
        if self.config.activation == "silu":
            return self.graph.op("QuickGelu", [gate], domain=CONTRIB, alpha=1.0)  # x * sigmoid(x)
        approximate = "tanh" if self.config.activation == "gelu_tanh" else "none"
        return self.graph.op("Gelu", [gate], approximate=approximate)

    def _layer(self, name: str, rows: Rows) -> str:
        return linear(self.graph, self.weights, rows, f"{name}.weight", self.checkpoint.tensor(f"{name}.weight"))

    def _bias(self, name: str, value: str) -> str:
        return self.graph.op("Add", [value, self.graph.constant(name, self.checkpoint.tensor(name))])


def save_embeddings(config: DecoderConfig, embeddings: NDArray[np.float32], file: Path) -> None:
    """Write the table in which the tokens of a run are looked up."""
    np.save(file, embeddings * np.float32(config.embedding_scale))


def add_head(
    graph: GraphBuilder,
    config: DecoderConfig,
    weights: Format,
    vectors: NDArray[np.float32],
    suffix: str = "",
) -> None:
    """Project some of the normalised rows onto the vectors of a vocabulary: the graph's output `logits`.

    A `suffix` tells a further head from the model's own; which rows are for it is an input of its own.
    """
    output = f"logits{suffix}"
    chosen = graph.input(f"{output}.rows", np.int64, [f"{output}.rows"])
    value, zero_points = (graph.op("Gather", [each, chosen], axis=0) for each in (NORMED, "zero_points"))
    rows = weights.rows(graph, value, zero_points=zero_points, normed=config.logits_scale == 1)
    logits = linear(graph, weights, rows, HEAD_WEIGHT + suffix, vectors)
    if config.logits_softcap is not None:
        bounded = graph.op("Tanh", [scaled(graph, logits, 1 / config.logits_softcap)])
        logits = scaled(graph, bounded, config.logits_softcap)
    graph.node("Identity", [logits], [output])
    graph.output(output, np.float32, [chosen, len(vectors)])


def scaled(graph: GraphBuilder, value: str, factor: float) -> str:
    """A value times a constant."""
    if factor == 1:
        return value
    return graph.op("Mul", [value, graph.shared(f"scale_{factor!r}", np.array(factor, np.float32))])


def _norm_name(layer: int, norm: str | None) -> str | None:
    return None if norm is None else f"model.layers.{layer}.{norm}.weight"
