"""From a checkpoint to a runner on kernels of our own: convert once, compile once, open."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from arriero.errors import UnsupportedModel
from arriero.machine import processor
from arriero.models.architecture import PRE_NORMS, Checkpoint, DecoderConfig
from arriero.models.cache import converted
from arriero.models.calibration import NO_CALIBRATION, Calibration
from arriero.runners.native.kernel import compiled_step
from arriero.runners.native.plan import LANES, Form
from arriero.runners.native.runner import NativeRunner

EVEN_STEP = 4.0 / 127
"""What normalised rows count in, which have a mean square of 1: bytes reach four standard deviations."""

NativeWeights = Literal["int8", "int4"]
FORMS: dict[NativeWeights, Form] = {"int8": Form.ROWS, "int4": Form.NIBBLES}


def reason_against(config: DecoderConfig) -> str | None:
    """Why the kernels do not compute a decoder, in a sentence; None where they do."""
    if config.norms != PRE_NORMS:
        return "Its layers have norms behind their branches."
    if config.activation != "silu" or config.mlp_bias:
        return "Its MLP has another activation than SiLU, or biases."
    if config.qk_norm == "projection":
        return "It normalises the queries of all heads together."
    if config.attention_softcap is not None or config.logits_softcap is not None:
        return "It bounds logits by tanh."
    if config.local_rope_theta is not None:
        return "Its layers with windows have positions of their own."
    if config.head_dim % LANES:
        return f"Its heads have {config.head_dim} elements, which is no multiple of {LANES}."
    return None


def is_fast() -> bool:
    """Whether this processor has the instructions that the kernels were made for, and numba is installed."""
    if importlib.util.find_spec("numba") is None:
        return False
    if abilities := processor():
        return "avx512_vnni" in abilities
    import llvmlite.binding

    return bool(llvmlite.binding.get_host_cpu_features().get("avx512vnni"))


def load_runner(
    checkpoint: Checkpoint,
    *,
    weights: NativeWeights,
    slots: int,
    context: int,
    threads: int,
    cache: Path,
    calibration: Calibration = NO_CALIBRATION,
    guesses: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> NativeRunner:
    """A runner for a checkpoint, from what was converted into `cache` at the first call.

    The other arguments are as `arriero.runners.onnx.load_runner` has them.

    Raises:
        UnsupportedModel: the kernels do not compute this architecture.
        ModelLoadError: a tensor is missing or misshapen, or the cache cannot be written.
    """
    if (reason := reason_against(checkpoint.config)) is not None:
        raise UnsupportedModel(f"The native engine does not compute this model. {reason}")
    key = {"checkpoint": checkpoint.identity, "engine": "native", "weights": weights}
    key["calibration"] = calibration.digest
    directory = converted(cache, key, lambda empty: _convert(checkpoint, weights, calibration, empty, progress))
    return NativeRunner(
        directory,
        checkpoint.config,
        compiled_step(cache / "kernels"),
        num_slots=slots,
        context=context,
        threads=threads,
        form=FORMS[weights],
        even_step=EVEN_STEP,
        num_guesses=guesses,
    )


def _convert(
    checkpoint: Checkpoint,
    weights: NativeWeights,
    calibration: Calibration,
    directory: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    from arriero.runners.native.quantisation import lie_in_groups
    from arriero.runners.native.weights import write_weights

    source = checkpoint
    # Other coordinates would part what lies in groups from them.
    if weights == "int8" or not lie_in_groups(checkpoint.tensor("model.layers.0.mlp.gate_proj.weight")):
        from arriero.runners.onnx.load import format_of, smoothed

        # The graph is needed only to see what a text does to the model.
        source = smoothed(checkpoint, format_of(weights, checkpoint.config), calibration, directory)
    write_weights(source, directory, FORMS[weights], progress)
