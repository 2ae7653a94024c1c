"""Runs the decoder graph: one step of many rows, or a prompt chunk of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from arriero.compute import Row, RunnerInfo, Want
from arriero.models.architecture import DecoderConfig
from arriero.runners.decoder import DecoderRunner
from arriero.runners.onnx.builder import MODEL_FILE
from arriero.runners.onnx.cache import KeyValueCache
from arriero.runners.onnx.formats import ZERO_POINT
from arriero.runners.onnx.session import open_session
from arriero.runners.onnx.verifier import Verifier
from arriero.runners.onnx.vocabularies import Vocabularies

_MAX_BINDINGS = 256
"""So many choices of heads are remembered; they come and go with the requests."""
_NOWHERE = np.array([], np.int64)


@dataclass(frozen=True, slots=True)
class _Binding:
    """A bound run of the graph, and the arrays it points into."""

    io: ort.IOBinding
    arrays: dict[str, NDArray[Any]]


class OnnxRunner(DecoderRunner[KeyValueCache]):
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
        num_guesses: int = 0,
        verifier: Path | None = None,
    ) -> None:
        """Open a graph that `build_decoder` wrote, and what `build_verifier` wrote for guesses, if any.

        Raises `ModelLoadError` where onnxruntime cannot.
        """
        self._session = open_session(directory / MODEL_FILE, threads)
        self._inputs = {each.name for each in self._session.get_inputs()}
        self._outputs = {each.name for each in self._session.get_outputs()}
        self._vocabularies = Vocabularies(directory, config.vocab_size)
        cache = KeyValueCache(config, num_slots, context)
        self._widths = self._vocabularies.widths
        sizes = self._vocabularies.sizes
        info = RunnerInfo(
            num_slots=num_slots,
            context=context,
            vocab_size=self._vocabularies.largest,
            bytes_per_token=cache.bytes_per_token,
            invariant=invariant,
            min_prompt_chunk=2,
            hidden_size=config.hidden_size,
            num_adapters=self._vocabularies.num_adapters,
            num_guesses=num_guesses,
            vocab_sizes=() if len(set(sizes)) == 1 else tuple(sizes),
        )
        super().__init__(info, cache)
        # A decode step reads and writes at the same places every time, so it is bound once per number of rows, and
        # per choice of heads where adapters have their own.
        self._hidden = np.empty((num_slots, 1, config.hidden_size), np.float32)
        self._adapters = np.zeros(num_slots, np.int64)
        self._logits = {head: np.empty((num_slots, width), np.float32) for head, width in self._widths.items()}
        self._lengths = np.zeros(num_slots, np.int32)
        self._total_length = np.zeros((), np.int32)
        self._decode_bindings: dict[tuple[str, ...], _Binding] = {}
        self._verifier: Verifier | None = None
        if verifier:
            sizes_of_model = (config.hidden_size, config.vocab_size)
            self._verifier = Verifier(verifier, self._cache, 1 + num_guesses, *sizes_of_model, threads)

    def step(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """See `Runner.step`."""
        logits: dict[int, NDArray[np.float32]] = {}
        for row in rows:
            if self._verifier and row.guessed:
                logits[row.slot] = self._verifier.read(row, self._vocabularies.embed(row.adapter, row.tokens))
            elif len(row.tokens) > 1:
                logits[row.slot] = np.concatenate([self._prefill(part) for part in _parts(row)])
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
        return np.concatenate([self._read_states(part) for part in _parts(row)])

    def close(self) -> None:
        """See `Runner.close`."""
        self._decode_bindings.clear()
        self._verifier = None
        del self._session
        self._cache.close()

    def _decode(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """One token for each of the first rows of the cache; logits for all, in that order."""
        count = len(rows)
        self._vocabularies.embed_rows(rows, self._hidden[:count, 0])
        self._adapters[:count] = [row.adapter for row in rows]
        self._lengths[:count] = [row.position for row in rows]
        self._total_length[...] = self._lengths[:count].max() + 1
        heads = tuple(self._vocabularies.heads[row.adapter] for row in rows)
        if heads not in self._decode_bindings:
            if len(self._decode_bindings) == _MAX_BINDINGS:
                self._decode_bindings.clear()
            self._decode_bindings[heads] = self._bind(
                first_row=0,
                hidden=self._hidden[:count],
                adapter=self._adapters[:count],
                wanted=np.arange(count),
                shown=_NOWHERE,
                seqlens_k=self._lengths[:count],
                total_length=self._total_length,
                **_head_arrays(heads, self._logits),
            )
        binding = self._decode_bindings[heads]
        self._session.run_with_iobinding(binding.io)
        for row in rows:
            self._cache.grow(row.slot, row.position + 1)
        return self._vocabularies.merge(heads, {head: binding.arrays[f"logits{head}"] for head in set(heads)})

    def _prefill(self, row: Row) -> NDArray[np.float32]:
        """Several tokens of one row; logits of the positions it wants."""
        count = len(row.tokens)
        wanted = np.arange({Want.NOTHING: count, Want.LAST: count - 1, Want.ALL: 0}[row.want], count)
        heads = [self._vocabularies.heads[row.adapter]] * len(wanted)
        logits, _ = self._read(row, wanted, _NOWHERE, heads)
        return self._vocabularies.merge(heads, logits)

    def _read_states(self, row: Row) -> NDArray[np.float32]:
        """Tokens of one row; their states."""
        _, states = self._read(row, _NOWHERE, np.arange(len(row.tokens)), [])
        return states

    def _read(
        self, row: Row, wanted: NDArray[np.int64], shown: NDArray[np.int64], heads: Sequence[str]
    ) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
        """Run tokens of one row by themselves; logits of the wanted ones, by head, and states of those shown."""
        count, end = len(row.tokens), row.position + len(row.tokens)
        logits = {head: np.empty((heads.count(head), size), np.float32) for head, size in self._widths.items()}
        states = np.empty((len(shown), self._info.hidden_size), np.float32)
        binding = self._bind(
            first_row=self._cache.row(row.slot),
            hidden=self._vocabularies.embed(row.adapter, row.tokens)[None],
            adapter=np.full(count, row.adapter),
            wanted=wanted,
            shown=shown,
            seqlens_k=np.array([end - 1], np.int32),
            total_length=np.array(end, np.int32),
            states=states,
            **_head_arrays(heads, logits),
        )
        self._session.run_with_iobinding(binding.io)
        self._cache.grow(row.slot, end)
        return logits, states

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
            if name in self._inputs:
                _bind(io.bind_input, name, array)
            elif name in self._outputs:
                _bind(io.bind_output, name, array)
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


def _head_arrays(heads: Sequence[str], logits: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    """What to bind for the heads of rows: which rows each head is for, and where their logits go."""
    arrays: dict[str, NDArray[Any]] = {}
    for head, array in logits.items():
        rows = [row for row, each in enumerate(heads) if each == head]
        arrays[f"logits{head}.rows"] = np.array(rows, np.int64)
        arrays[f"logits{head}"] = array[: len(rows)]
    return arrays


def _bind(bind: Any, name: str, array: NDArray[Any]) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
