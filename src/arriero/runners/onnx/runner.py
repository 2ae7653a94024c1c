"""Runs the decoder graph: one step of many rows, or a prompt chunk of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from arriero.core import Row, RunnerInfo, Want
from arriero.errors import ModelLoadError
from arriero.models.architecture import DecoderConfig
from arriero.runners.onnx.builder import MODEL_FILE
from arriero.runners.onnx.cache import KeyValueCache
from arriero.runners.onnx.decoder import EMBEDDINGS_FILE
from arriero.runners.onnx.formats import ZERO_POINT

_NOWHERE = np.array([], np.int64)


@dataclass(frozen=True, slots=True)
class _Binding:
    """A bound run of the graph, and the arrays it points into."""

    io: ort.IOBinding
    arrays: dict[str, NDArray[Any]]


class OnnxRunner:
    """A `Runner` on onnxruntime's CPU provider.

    Rows with one token are decoded together in one run of the graph. A row with several tokens is a run of
    its own, because attention on the CPU takes no batch of several rows with several tokens each.

    Attention sums in another order for one token than for several. Decoding always takes the one way; prompts
    always take the other, if they are never cut into chunks of one token (`min_prompt_chunk`) and if attention,
    which works in blocks of tokens, is never left with a last block of one. So a prompt's result is the same
    however it is cut.
    """

    def __init__(
        self,
        directory: Path,
        config: DecoderConfig,
        *,
        num_slots: int,
        context: int,
        threads: int,
        invariant: bool,
    ) -> None:
        """Open a graph that `build_decoder` wrote; raises `ModelLoadError` where onnxruntime cannot."""
        self._session = _open(directory / MODEL_FILE, threads)
        self._config = config
        # Mapped, not read: only the rows of tokens that occur are ever touched.
        self._embeddings = np.load(directory / EMBEDDINGS_FILE, mmap_mode="r")
        self._cache = KeyValueCache(config, num_slots, context)
        self._info = RunnerInfo(
            num_slots=num_slots,
            context=context,
            vocab_size=config.vocab_size,
            bytes_per_token=self._cache.bytes_per_token,
            invariant=invariant,
            min_prompt_chunk=2,
            hidden_size=config.hidden_size,
        )
        # A decode step reads and writes at the same places every time, so it is bound once per number of rows.
        self._hidden = np.empty((num_slots, 1, config.hidden_size), np.float32)
        self._logits = np.empty((num_slots, config.vocab_size), np.float32)
        self._lengths = np.zeros(num_slots, np.int32)
        self._total_length = np.zeros((), np.int32)
        self._decode_bindings: dict[int, _Binding] = {}

    @property
    def info(self) -> RunnerInfo:
        """What this runner can do."""
        return self._info

    def step(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """See `Runner.step`."""
        logits: dict[int, NDArray[np.float32]] = {}
        for row in rows:
            if len(row.tokens) > 1:
                logits[row.slot] = np.concatenate([self._read(part, "logits") for part in _parts(row)])
        single = {row.slot: row for row in rows if len(row.tokens) == 1}
        if single:
            order = self._cache.arrange(list(single))
            decoded = self._decode([single[slot] for slot in order])
            if len(order) == len(rows) and all(
                row.slot == slot and row.want is not Want.NOTHING for row, slot in zip(rows, order, strict=True)
            ):
                return decoded
            for slot, row_logits in zip(order, decoded, strict=True):
                logits[slot] = row_logits[None][: single[slot].want is not Want.NOTHING]
        return np.concatenate([logits[row.slot] for row in rows])

    def states(self, row: Row) -> NDArray[np.float32]:
        """See `Runner.states`."""
        return np.concatenate([self._read(part, "states") for part in _parts(replace(row, want=Want.ALL))])

    def encode(self, slot: int, tokens: Sequence[int], adapter: int = 0) -> None:
        """A decoder has no encoder."""
        raise ValueError("the runner of a decoder was asked to encode")

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See `Runner.copy`."""
        self._cache.copy(pairs)

    def truncate(self, slot: int, length: int) -> None:
        """See `Runner.truncate`."""
        self._cache.truncate(slot, length)

    def free(self, slot: int) -> None:
        """See `Runner.free`."""
        self._cache.free(slot)

    def close(self) -> None:
        """See `Runner.close`."""
        self._decode_bindings.clear()
        del self._session
        self._cache.close()

    def _decode(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """One token for each of the first rows of the cache; logits for all, in that order."""
        count = len(rows)
        self._hidden[:count, 0] = self._embeddings[[row.tokens[0] for row in rows]]
        self._lengths[:count] = [row.position for row in rows]
        self._total_length[...] = self._lengths[:count].max() + 1
        if count not in self._decode_bindings:
            self._decode_bindings[count] = self._bind(
                first_row=0,
                hidden=self._hidden[:count],
                wanted=np.arange(count),
                shown=_NOWHERE,
                seqlens_k=self._lengths[:count],
                total_length=self._total_length,
                logits=self._logits[:count],
            )
        self._session.run_with_iobinding(self._decode_bindings[count].io)
        for row in rows:
            self._cache.grow(row.slot, row.position + 1)
        return self._logits[:count]

    def _read(self, row: Row, output: Literal["logits", "states"]) -> NDArray[np.float32]:
        """Tokens of one row by themselves; logits or states of the positions it wants."""
        count, end = len(row.tokens), row.position + len(row.tokens)
        positions = np.arange({Want.NOTHING: count, Want.LAST: count - 1, Want.ALL: 0}[row.want], count)
        width = self._info.vocab_size if output == "logits" else self._info.hidden_size
        binding = self._bind(
            first_row=self._cache.row(row.slot),
            hidden=self._embeddings[list(row.tokens)][None],
            wanted=positions if output == "logits" else _NOWHERE,
            shown=positions if output == "states" else _NOWHERE,
            seqlens_k=np.array([end - 1], np.int32),
            total_length=np.array(end, np.int32),
            **{output: np.empty((len(positions), width), np.float32)},
        )
        self._session.run_with_iobinding(binding.io)
        self._cache.grow(row.slot, end)
        return binding.arrays[output]

    def _bind(self, *, first_row: int, hidden: NDArray[np.float32], **arrays: NDArray[Any]) -> _Binding:
        """Bind arrays by pointer, and keys and values from `first_row` on as both past and present."""
        num_rows, num_tokens, _ = hidden.shape
        arrays |= {
            "hidden": hidden,
            "packed_shape": np.array([num_rows, num_tokens, -1], np.int64),
            "zero_points": np.full(num_rows * num_tokens, ZERO_POINT, np.uint8),
        }
        io = self._session.io_binding()
        for name, array in arrays.items():
            if name in ("logits", "states"):
                _bind(io.bind_output, name, array)
            else:
                _bind(io.bind_input, name, array)
        for index, buffer in enumerate(self._cache.buffers):
            rows = buffer[first_row : first_row + num_rows]
            name = f"{index // 2}.{('key', 'value')[index % 2]}"
            _bind(io.bind_input, f"past.{name}", rows)
            _bind(io.bind_output, f"present.{name}", rows)
        return _Binding(io, arrays)


def _parts(row: Row) -> list[Row]:
    """The row as one run, or as two where its last block in attention would hold a single token.

    Attention's blocks are a multiple of 16 tokens long: twice the head's size, or less where that does not
    fit the processor's cache.
    """
    if len(row.tokens) % 16 != 1 or len(row.tokens) == 1:
        return [row]
    cut = len(row.tokens) - 2
    first = Row(row.slot, row.tokens[:cut], row.position, Want.ALL if row.want is Want.ALL else Want.NOTHING)
    return [first, Row(row.slot, row.tokens[cut:], row.position + cut, row.want)]


def _bind(bind: Any, name: str, array: NDArray[Any]) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _open(model: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    # onnxruntime's exceptions have no common base of their own.
    except Exception as error:
        raise ModelLoadError(f"onnxruntime cannot open the converted graph {model}: {error}") from error
