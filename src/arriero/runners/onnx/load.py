"""From a checkpoint to a runner: pick the format, convert once, open."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from arriero.errors import UnsupportedModel
from arriero.models.adapters.lora import Adapter
from arriero.models.architecture import Checkpoint, DecoderConfig
from arriero.models.cache import converted
from arriero.models.calibration import NO_CALIBRATION, Calibration
from arriero.runners.onnx.adapters import build_adapters
from arriero.runners.onnx.decoder import build_decoder
from arriero.runners.onnx.formats import Blockwise, Format, Fp32, Int8, WeightFormat
from arriero.runners.onnx.padding import PaddedCheckpoint, is_padded
from arriero.runners.onnx.probe import products_keep_to_their_rows, signed_weights_are_exact
from arriero.runners.onnx.runner import OnnxRunner
from arriero.runners.onnx.smoothing import SmoothedCheckpoint, observe, rotates
from arriero.runners.onnx.verifier import build_verifier

_REACH_FILE = "reach.npy"
"""float32 [layers, intermediate + 2 * hidden]; see `arriero.runners.onnx.smoothing`."""


def load_runner(
    checkpoint: Checkpoint,
    *,
    weights: WeightFormat,
    slots: int,
    context: int,
    threads: int,
    cache: Path,
    calibration: Calibration = NO_CALIBRATION,
    adapters: Sequence[Adapter] = (),
    guesses: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> OnnxRunner:
    """A runner for a checkpoint, from its converted graph in `cache`, which is made at the first call.

    `slots` sequences of up to `context` tokens each; `threads` cores compute. `calibration` are the
    tokens of a text that int8 conversion lets the model read, to see which channels reach far; without it they
    are estimated from the weights. Rows may use any of the `adapters`, counted from 1; what was converted of the
    checkpoint serves with any adapters and with none. Rows may have so many `guesses`, where a row's products depend on
    that row alone and there are no adapters. `progress(done, total)` is called while converting, with the
    number of layers.

    Raises:
        UnsupportedModel: the graph cannot compute this architecture.
        ModelLoadError: a tensor is missing or misshapen, or the cache cannot be written.
    """
    if is_padded(checkpoint.config):
        if adapters:
            raise UnsupportedModel(
                f"Adapters over attention heads of {checkpoint.config.head_dim} elements are not computed by onnx."
            )
        checkpoint = PaddedCheckpoint(checkpoint)
    form = format_of(weights, checkpoint.config)
    key = {"checkpoint": checkpoint.identity, "engine": "onnx", "weights": form.variant}
    if form.smooth:
        key["calibration"] = calibration.digest
    directory = converted(cache, key, lambda empty: _convert(checkpoint, form, calibration, empty, progress))
    if adapters:
        base, key["adapters"] = directory, " ".join(adapter.identity for adapter in adapters)
        directory = converted(
            cache, key, lambda empty: build_adapters(base, checkpoint, adapters, form, _reach(base), empty)
        )
    verifier = None
    if guesses:
        if adapters or not form.invariant:
            raise UnsupportedModel("Guesses are verified with weights in int8 and fp32, and without adapters.")
        base, key["guesses"] = directory, str(guesses)
        verifier = converted(cache, key, lambda empty: build_verifier(base, 1 + guesses, empty))
    return OnnxRunner(
        directory,
        checkpoint.config,
        num_slots=slots,
        context=context,
        threads=threads,
        invariant=form.invariant and (not adapters or products_keep_to_their_rows()),
        num_guesses=guesses,
        verifier=verifier,
    )


def _convert(
    checkpoint: Checkpoint,
    form: Format,
    calibration: Calibration,
    directory: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    source = smoothed(checkpoint, form, calibration, directory) if form.smooth else checkpoint
    build_decoder(source, form, directory, progress)


def smoothed(checkpoint: Checkpoint, form: Format, calibration: Calibration, directory: Path) -> SmoothedCheckpoint:
    """The checkpoint in coordinates that suit a format; a graph in `directory` reads the `calibration`, if any.

    What was observed stays there, for adapters that come later.
    """
    smooth = SmoothedCheckpoint(checkpoint, rotated=form.rotated)
    tokens = calibration.tokens()
    if not tokens:
        return smooth
    with tempfile.TemporaryDirectory(dir=directory) as observed:
        build_decoder(smooth, form, Path(observed), observed=True)
        reach = smooth.original_reach(observe(Path(observed), smooth.config, tokens))
    np.save(directory / _REACH_FILE, reach)
    return SmoothedCheckpoint(checkpoint, reach, rotated=form.rotated)


def _reach(directory: Path) -> list[NDArray[np.float32]] | None:
    """What was observed for a conversion, if anything was."""
    file = directory / _REACH_FILE
    return list(np.load(file)) if file.exists() else None


def format_of(weights: WeightFormat, config: DecoderConfig) -> Format:
    """The format of that name for a model, on this machine."""
    if weights == "fp32":
        return Fp32()
    if weights == "int4":
        return Blockwise()
    return Int8(signed_weights=signed_weights_are_exact(), even=rotates(config))
