"""Runs the compiled kernels: any rows with any numbers of tokens in one step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arriero.compute import Row, RunnerInfo, Want
from arriero.models.architecture import DecoderConfig
from arriero.models.decoders.rope import inverse_frequencies, rotation_scale
from arriero.runners.decoder import DecoderRunner
from arriero.runners.native.cache import KeyValueCache
from arriero.runners.native.kernel import Step
from arriero.runners.native.plan import (
    BLOCK,
    COUNTER_BYTES,
    ENDED,
    GROUP,
    LANES,
    SCRATCH_QUERIES,
    SCRATCH_ROWS,
    UNIT,
    Do,
    Form,
    Operation,
    Plan,
    padded,
)
from arriero.runners.native.team import Team
from arriero.runners.native.weights import EMBEDDINGS_FILE, STATES, Weights, head_form
from arriero.runners.table import Table

_PART = 16
"""Tokens of one row that a part of attention takes at most."""


class NativeRunner(DecoderRunner[KeyValueCache]):
    """A `Runner` on kernels of our own."""

    def __init__(
        self,
        directory: Path,
        config: DecoderConfig,
        step: Step,
        *,
        num_slots: int,
        context: int,
        threads: int,
        form: Form,
        even_step: float,
        num_guesses: int = 0,
    ) -> None:
        cache = KeyValueCache(config, num_slots, context)
        info = RunnerInfo(
            num_slots=num_slots,
            context=context,
            vocab_size=config.vocab_size,
            bytes_per_token=cache.bytes_per_token,
            invariant=True,
            alike=True,
            hidden_size=config.hidden_size,
            num_guesses=num_guesses,
        )
        super().__init__(info, cache)
        self._config = config
        self._weights = Weights(directory)
        self._embeddings = Table(directory / EMBEDDINGS_FILE)
        angles = np.arange(context, dtype=np.float32)[:, None] * inverse_frequencies(config, local=False)
        scale = np.float32(rotation_scale(config, local=False))
        self._rotations = [np.ascontiguousarray(turn(angles) * scale, np.float32) for turn in (np.cos, np.sin)]
        attention_scale = config.attention_scale or config.head_dim**-0.5
        self._reals = np.array([config.norm_epsilon, even_step, attention_scale], np.float32)
        queries = config.num_heads * config.head_dim
        self._widths = {
            "hidden": padded(config.hidden_size, UNIT),
            "qkv": padded(queries + 2 * config.num_kv_heads * config.head_dim, UNIT),
            "attended": padded(queries, UNIT),
            "inner": padded(config.intermediate_size, UNIT),
            "logits": padded(config.vocab_size, UNIT),
        }
        self._form = form
        widest = padded(max(config.hidden_size, queries, config.intermediate_size), 64)
        self._widths |= {"bytes": widest, "steps": 1 if form == Form.ROWS else 2 * widest // GROUP}
        """Elements of each row of the arrays."""
        self._program = self._write_program()
        self._plan = np.zeros(Plan.SIZE, np.int64)
        self._arrays: dict[Plan, NDArray[Any]] = {}
        self._describe(threads)
        addresses = [each.ctypes.data for each in (self._plan, self._program, self._reals)]
        self._team = Team(threads, lambda number: step(number, *addresses))

    def step(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """See `Runner.step`."""
        wanted: list[int] = []
        first = 0
        for row in rows:
            count = len(row.tokens)
            skipped = {Want.NOTHING: count, Want.LAST: count - 1, Want.ALL: 0}[row.want]
            wanted.extend(range(first + skipped, first + count))
            first += count
        logits = self._room(Plan.LOGITS, (len(wanted), self._widths["logits"]), np.float32)
        self._run(rows, wanted)
        return logits[:, : self._info.vocab_size]

    def states(self, row: Row) -> NDArray[np.float32]:
        """See `Runner.states`."""
        self._run([row], [])
        size = self._config.hidden_size
        hidden = self._arrays[Plan.HIDDEN][: len(row.tokens), :size]
        factor = 1 / np.sqrt((hidden * hidden).mean(axis=1, keepdims=True) + self._config.norm_epsilon)
        gamma = self._weights.floats("final_norm")
        assert gamma is not None
        states: NDArray[np.float32] = hidden * factor * gamma[:size]
        basis = self._weights.floats(STATES)
        return states if basis is None else states @ basis.reshape(size, size).T

    def close(self) -> None:
        """See `Runner.close`."""
        self._team.close()
        self._cache.close()

    def shares(self) -> dict[str, float]:
        """How the last step's time was divided among kinds of operations, without what came before the first one's end.

        Products go by what they read and write. The shares add up to 1.
        """
        ends = self._arrays[Plan.COUNTERS].reshape(len(self._program), -1)[:, ENDED // 8]
        spent: dict[str, float] = {}
        for operation, duration in zip(self._program[1:], np.diff(ends), strict=True):
            kind = Do(operation[Operation.DO]).name.lower()
            if operation[Operation.OUT]:
                kind = f"product to {Plan(operation[Operation.OUT]).name.lower()}"
                if kind.endswith("hidden"):
                    kind += f" from {operation[Operation.SIZE_IN]}"
            spent[kind] = spent.get(kind, 0.0) + float(duration)
        total = sum(spent.values())
        return {kind: duration / total for kind, duration in spent.items()}

    def _run(self, rows: Sequence[Row], wanted: Sequence[int]) -> None:
        """Append every row's tokens to its slot, and put the logits of wanted tokens into the plan's array."""
        self._weights.settle(self._program)
        plan, config = self._plan, self._config
        counts = [len(row.tokens) for row in rows]
        tokens = sum(counts)
        widths = self._widths
        hidden = self._room(Plan.HIDDEN, (tokens, widths["hidden"]), np.float32)
        hidden[:, : config.hidden_size] = self._embeddings.rows([token for row in rows for token in row.tokens])
        self._room(Plan.BYTES, (tokens, widths["bytes"]), np.uint8)
        self._room(Plan.STEPS, (tokens, widths["steps"]), np.float32)
        self._room(Plan.QKV, (tokens, widths["qkv"]), np.float32)
        self._room(Plan.ATTENDED, (tokens, widths["attended"]), np.float32)
        self._room(Plan.INNER, (tokens, widths["inner"]), np.float32)
        positions = self._room(Plan.POSITIONS, (tokens,), np.int64)
        caches = self._room(Plan.CACHES, (tokens,), np.int64)
        parts: list[tuple[int, int]] = []
        first = longest = 0
        for row, count in zip(rows, counts, strict=True):
            positions[first : first + count] = np.arange(row.position, row.position + count)
            caches[first : first + count] = self._cache.address(row.slot)
            parts.extend((first + start, min(_PART, count - start)) for start in range(0, count, _PART))
            first += count
            longest = max(longest, row.position + count)
            self._cache.grow(row.slot, row.position + count)
        parts.reverse()  # The last ones of a prompt attend to most tokens.
        self._fill(Plan.PART_FIRST, [part for part, _ in parts])
        self._fill(Plan.PART_COUNT, [count for _, count in parts])
        self._fill(Plan.WANTED_TOKENS, wanted)
        plan[Plan.TOKENS], plan[Plan.WANTED], plan[Plan.PARTS] = tokens, len(wanted), len(parts)
        scores = padded(longest, BLOCK)
        plan[Plan.SCORES] = scores
        attention = 64 + 4 * SCRATCH_QUERIES * (config.head_dim + scores)
        scratch = max(attention, 4 * UNIT * SCRATCH_ROWS, 4 * widths["hidden"])
        plan[Plan.SCRATCH_SIZE] = padded(scratch, 4096)
        self._room(Plan.SCRATCH, (int(plan[Plan.SCRATCH_SIZE] * plan[Plan.THREADS]),), np.uint8)
        self._arrays[Plan.COUNTERS][:] = 0
        self._team.run()

    def _describe(self, threads: int) -> None:
        """Write what is the same in all steps: the program, and the sizes and weights that it works with."""
        plan, config = self._plan, self._config
        plan[Plan.HEADS], plan[Plan.KV_HEADS], plan[Plan.HEAD_SIZE] = (
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
        )
        plan[Plan.ROTARY_SIZE] = 2 * self._rotations[0].shape[1]
        plan[Plan.COSINES], plan[Plan.SINES] = (each.ctypes.data for each in self._rotations)
        plan[Plan.BLOCK_BYTES], plan[Plan.LAYER_BYTES] = self._cache.block_bytes, self._cache.layer_bytes
        plan[Plan.THREADS], plan[Plan.OPERATIONS] = threads, len(self._program)
        plan[Plan.WIDTH], plan[Plan.STEPS_WIDTH] = self._widths["bytes"], 4 * self._widths["steps"]
        self._room(Plan.COUNTERS, (COUNTER_BYTES // 8 * len(self._program),), np.int64)

    def _write_program(self) -> NDArray[np.int64]:
        config, widths = self._config, self._widths
        hidden, inner, queries = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim
        operations = []
        for layer in range(config.num_layers):
            operations += [
                self._normalise(f"{layer}.norm"),
                self._linear(Do.MULTIPLY, f"{layer}.qkv", hidden, Plan.QKV, widths["qkv"]),
                {
                    Operation.DO: Do.PLACE,
                    Operation.LAYER: layer,
                    Operation.TURNED: layer not in config.layers_without_positions,
                    Operation.QUERY_NORM: self._weights.address(f"{layer}.q_norm"),
                    Operation.KEY_NORM: self._weights.address(f"{layer}.k_norm"),
                },
                {Operation.DO: Do.ATTEND, Operation.LAYER: layer, Operation.WINDOW: config.window(layer) or 0},
                self._round(Plan.ATTENDED, queries, widths["attended"]),
                self._linear(Do.ADD, f"{layer}.output", queries, Plan.HIDDEN, widths["hidden"]),
                self._normalise(f"{layer}.mlp_norm"),
                self._linear(Do.GATE, f"{layer}.gate_up", hidden, Plan.INNER, widths["inner"]),
                self._round(Plan.INNER, inner, widths["inner"]),
                self._linear(Do.ADD, f"{layer}.down", inner, Plan.HIDDEN, widths["hidden"]),
            ]
        operations.append(
            self._normalise("final_norm") | {Operation.ROWS: Plan.WANTED, Operation.CHOSEN: Plan.WANTED_TOKENS}
        )
        operations.append(
            self._linear(Do.MULTIPLY, "head", hidden, Plan.LOGITS, widths["logits"])
            | {Operation.ROWS: Plan.WANTED, Operation.FORM: head_form(self._form)}
        )
        program = np.zeros((len(operations), Operation.SIZE), np.int64)
        for row, operation in zip(program, operations, strict=True):
            row[list(operation)] = list(operation.values())
        return program

    def _normalise(self, name: str) -> dict[Operation, int]:
        return {
            Operation.DO: Do.NORMALISE,
            Operation.ROWS: Plan.TOKENS,
            Operation.SOURCE: Plan.HIDDEN,
            Operation.SOURCE_STRIDE: self._widths["hidden"],
            Operation.SIZE_IN: self._config.hidden_size,
            Operation.WEIGHTS: self._weights.address(name),
            Operation.FORM: self._form,
        }

    def _round(self, source: Plan, size: int, stride: int) -> dict[Operation, int]:
        return {
            Operation.DO: Do.ROUND,
            Operation.ROWS: Plan.TOKENS,
            Operation.SOURCE: source,
            Operation.SOURCE_STRIDE: stride,
            Operation.SIZE_IN: size,
            Operation.FORM: self._form,
        }

    def _linear(self, do: Do, name: str, size: int, out: Plan, stride: int) -> dict[Operation, int]:
        return {
            Operation.DO: do,
            Operation.ROWS: Plan.TOKENS,
            Operation.OUT: out,
            Operation.OUT_STRIDE: stride,
            Operation.SIZE_IN: size,
            Operation.UNITS: stride // (LANES if do == Do.GATE else UNIT),
            Operation.WEIGHTS: self._weights.address(name),
            Operation.SCALES: self._weights.address(f"{name}.scales"),
            Operation.SUMS: self._weights.address(f"{name}.sums"),
            Operation.BIAS: self._weights.address(f"{name}.bias"),
            Operation.FORM: self._form,
        }

    def _room(self, place: Plan, shape: tuple[int, ...], kind: type) -> NDArray[Any]:
        """An array for a step, part of one that stays; what it holds is anything, but never infinite."""
        array = self._arrays.get(place)
        if array is None or len(array) < shape[0] or array.shape[1:] != shape[1:]:
            size = max(shape[0], 1) if array is None else max(shape[0], 2 * len(array))
            self._arrays[place] = array = np.zeros((size, *shape[1:]), np.dtype(kind))
        self._plan[place] = array.ctypes.data
        return array[: shape[0]]

    def _fill(self, place: Plan, values: Sequence[int]) -> None:
        self._room(place, (len(values),), np.int64)[:] = values
