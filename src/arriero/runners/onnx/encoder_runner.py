"""Runs the encoder graph over inputs of any length, and makes vectors of what comes out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from arriero.compute import EncoderInfo
from arriero.models.cache import converted
from arriero.models.encoders.encoder import EncoderCheckpoint
from arriero.models.encoders.encoder_config import EncoderConfig
from arriero.runners.onnx.builder import MODEL_FILE
from arriero.runners.onnx.encoder import build_encoder
from arriero.runners.onnx.formats import ZERO_POINT, Format, Fp32, Int8
from arriero.runners.onnx.probe import signed_weights_are_exact
from arriero.runners.onnx.session import open_session
from arriero.runners.pooling import finish

EncoderWeights = Literal["fp32", "int8"]

RUN_TOKENS = 512
"""Tokens of one run of the graph, unless one input alone has more. With twice as many each takes more time: attention
pads more, and what lies between two layers leaves the caches."""


def load_encoder(
    checkpoint: EncoderCheckpoint,
    *,
    weights: EncoderWeights,
    threads: int,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
) -> OnnxEncoder:
    """An encoder for a checkpoint, from its converted graph in `cache`, which is made at the first call.

    `threads` cores compute. `progress(done, total)` is called while converting, with the number of layers.

    Raises:
        ModelLoadError: a tensor is damaged, or the cache cannot be written.
    """
    form: Format = Fp32() if weights == "fp32" else Int8(signed_weights=signed_weights_are_exact())
    key = {"checkpoint": checkpoint.identity, "engine": "onnx-encoder", "weights": form.variant}
    directory = converted(cache, key, lambda empty: _convert(checkpoint, form, empty, progress))
    return OnnxEncoder(directory, checkpoint, threads=threads, invariant=form.invariant)


def _convert(
    checkpoint: EncoderCheckpoint, form: Format, directory: Path, progress: Callable[[int, int], None] | None
) -> None:
    reach = {}
    if form.smooth:
        with tempfile.TemporaryDirectory(dir=directory) as observed:
            build_encoder(checkpoint, Fp32(), Path(observed), observed=True)
            reach = _observe(Path(observed), checkpoint.config)
    build_encoder(checkpoint, form, directory, progress, reach=reach)


def _observe(directory: Path, config: EncoderConfig) -> dict[str, NDArray[np.float32]]:
    """How far each channel reaches where an observed graph reads random tokens: which ones stand out hardly depends
    on the text."""
    session = open_session(directory / MODEL_FILE, threads=1)
    bits = np.random.PCG64(0)
    length = min(64, config.context)
    inputs = [(bits.random_raw(length) % config.vocab_size).astype(np.int64) for _ in range(8)]
    feeds = _feeds(inputs, [length] * len(inputs), config.padding_id)
    names = [output.name for output in session.get_outputs() if output.name.startswith("reach.")]
    found = session.run(names, {feed.name: feeds[feed.name] for feed in session.get_inputs()})
    return {name.removeprefix("reach."): values for name, values in zip(names, found, strict=True)}


class OnnxEncoder:
    """An `Encoder` on onnxruntime's CPU provider.

    Inputs are sorted by length and run in groups of about equal length, so that attention pads little.
    A score is the head's logit; what its configuration applies to it is left to the caller.
    """

    def __init__(self, directory: Path, checkpoint: EncoderCheckpoint, *, threads: int, invariant: bool) -> None:
        """Open a graph that `build_encoder` wrote; raises `ModelLoadError` where onnxruntime cannot."""
        self._session = open_session(directory / MODEL_FILE, threads)
        self._wanted = {feed.name for feed in self._session.get_inputs()}
        self._padding_id = checkpoint.config.padding_id
        self._finish = finish(checkpoint)
        self._info = EncoderInfo(
            context=checkpoint.context,
            vocab_size=checkpoint.config.vocab_size,
            width=checkpoint.width,
            invariant=invariant,
        )

    @property
    def info(self) -> EncoderInfo:
        """What this encoder can do."""
        return self._info

    def encode(self, inputs: Sequence[Sequence[int]], first_segments: Sequence[int]) -> NDArray[np.float32]:
        """See `Encoder.encode`; every input has at least one token."""
        vectors = np.empty((len(inputs), self._info.width), np.float32)
        for group in _groups(inputs):
            ids = [np.asarray(inputs[index], np.int64) for index in group]
            feeds = _feeds(ids, [first_segments[index] for index in group], self._padding_id)
            wanted = {name: array for name, array in feeds.items() if name in self._wanted}
            states: NDArray[np.float32] = self._session.run(["states"], wanted)[0]
            start = 0
            for index, tokens in zip(group, ids, strict=True):
                vectors[index] = self._finish(states[start : start + len(tokens)])
                start += len(tokens)
        return vectors

    def close(self) -> None:
        """See `Encoder.close`."""
        del self._session


def _feeds(
    inputs: Sequence[NDArray[np.int64]], first_segments: Sequence[int], padding_id: int | None
) -> dict[str, NDArray[Any]]:
    """What the graph reads of inputs that lie behind each other; see `encoder`."""
    lengths = np.array([len(tokens) for tokens in inputs], np.int32)
    columns = np.arange(lengths.max())
    real = columns < lengths[:, None]
    starts = np.cumsum(lengths) - lengths
    return {
        "ids": np.concatenate(inputs),
        "positions": np.concatenate([_positions(tokens, padding_id) for tokens in inputs]),
        "types": np.broadcast_to(columns >= np.array(first_segments)[:, None], real.shape)[real].astype(np.int64),
        "places": np.where(real, starts[:, None] + columns, 0),
        "lengths": lengths,
        "kept": np.flatnonzero(real),
        "zero_points": np.full(lengths.sum(), ZERO_POINT, np.uint8),
    }


def _positions(tokens: NDArray[np.int64], padding_id: int | None) -> NDArray[np.int64]:
    """Row of each token in the table of positions; see `EncoderConfig.padding_id`."""
    if padding_id is None:
        return np.arange(len(tokens))
    counted = tokens != padding_id
    positions: NDArray[np.int64] = np.cumsum(counted) * counted + padding_id
    return positions


def _groups(inputs: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of the inputs in runs of up to `RUN_TOKENS`, longest first."""
    group: list[int] = []
    count = 0
    for index in sorted(range(len(inputs)), key=lambda index: -len(inputs[index])):
        if group and count + len(inputs[index]) > RUN_TOKENS:
            yield group
            group, count = [], 0
        group.append(index)
        count += len(inputs[index])
    if group:
        yield group
