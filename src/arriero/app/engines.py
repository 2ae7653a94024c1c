"""Which engine computes a model, and why."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arriero.app.pickles import torch_is_installed
from arriero.errors import ConfigError, ModelLoadError, UnsupportedModel
from arriero.models.checkpoint import open_checkpoint
from arriero.models.decoders.families import ARCHITECTURES, family_of
from arriero.models.decoders.layout import check_config
from arriero.models.files.json_files import Settings, brief, read_json
from arriero.models.files.pickled import pickled_weights
from arriero.models.kind import kind_of

HALVES = ("bf16", "fp16")
"""Weight formats that only torch computes with."""
NATIVE_WEIGHTS = ("auto", "int8", "int4")
"""Settings of the formats that the native engine computes with."""
_ONCE_WRITTEN = "once torch has written the pickled weights as safetensors"
_GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForSeq2SeqLM", "MTModel")
"""How the names of architectures end that write text."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, and in one sentence why it and not the other."""

    engine: Literal["native", "onnx", "torch"]
    reason: str


def choose_engine(
    path: Path, *, engine: str = "auto", weights: str = "auto", gpus: str | None = None, adapters: bool = False
) -> Choice:
    """The engine for the GGUF file or directory at `path`: kernels of our own where they are fast, ONNX where it can,
    torch where it must.

    `engine`, `weights` and `gpus` are the settings of these names; `adapters` says whether there are any. Looks at the
    configuration and the tensors' shapes, and reads no weights.

    Raises:
        ModelLoadError, UnsupportedModel: it is damaged, or nothing here computes it.
        ConfigError: the settings exclude each other.
    """
    if is_encoder(path):
        if engine in ("native", "torch"):
            raise ConfigError(f"--engine is {engine}, but encoders run on the onnx engine")
        from arriero.models.encoders.encoder import configure, open_encoder  # few models need it

        if pickled_weights(path) is None:
            open_encoder(path)
            return Choice("onnx", "Encoders run on it.")
        configure(path, Settings(path / "config.json", read_json(path / "config.json")))
        choice = Choice("onnx", f"Encoders run on it, {_ONCE_WRITTEN}.")
        require_torch(choice, path)
        return choice
    if engine == "native":
        _require_native(path, weights, gpus, adapters)
        return Choice("native", "The settings ask for it.")
    if engine == "torch":
        if path.is_file():
            raise ConfigError("--engine torch reads Hugging Face directories; GGUF files are for the onnx engine")
        return Choice("torch", "The settings ask for it.")
    if weights in HALVES:
        if engine == "onnx" or path.is_file():
            raise ConfigError(f"--weights {weights} is for models in directories and the torch engine")
        return Choice("torch", f"The settings ask for {weights}, which the onnx engine does not compute with.")
    if gpus not in (None, "none"):
        if engine == "onnx" or path.is_file() or not _writes_text(path):
            raise ConfigError(
                f"--gpus is {gpus}, but the onnx engine uses the CPU, and torch takes directories of models that write"
            )
        return Choice("torch", "The settings ask for GPUs, which the onnx engine does not use.")
    try:
        _check_onnx(path)
    except UnsupportedModel as error:
        if _needs_only_other_files(path):
            return Choice("onnx", f"It can, {_ONCE_WRITTEN}.")
        if engine == "onnx" or path.is_file() or not _writes_text(path):
            raise
        _refuse_quantised(path)
        return Choice("torch", _reason(path, error))
    if engine == "onnx":
        return Choice("onnx", "The settings ask for it.")
    if weights not in NATIVE_WEIGHTS or adapters:
        return Choice("onnx", "It can, and it is the faster one on a CPU.")
    return _native_or_onnx(path)


def _native_or_onnx(path: Path) -> Choice:
    from arriero.runners.native import is_fast, reason_against

    against = reason_against(open_checkpoint(path).config)
    if against is not None:
        return Choice("onnx", f"It can; the native engine does not compute this model. {against}")
    if not is_fast():
        return Choice("onnx", "It can; the native engine is made for processors with AVX-512 VNNI.")
    return Choice("native", "It can, and it is the fastest one on this processor.")


def _require_native(path: Path, weights: str, gpus: str | None, adapters: bool) -> None:
    """Raise unless the native engine can do all that the settings ask for."""
    from arriero.runners.native import reason_against

    if weights not in NATIVE_WEIGHTS:
        raise ConfigError(f"--engine native computes with weights in int8 and int4, but --weights is {weights}")
    if gpus not in (None, "none"):
        raise ConfigError(f"--engine native uses the CPU, but --gpus is {gpus}")
    if adapters:
        raise ConfigError("--engine native computes no LoRA adapters; leave --engine out")
    if importlib.util.find_spec("numba") is None:
        raise ModelLoadError("--engine native needs numba, which is not installed: pip install numba")
    _check_onnx(path)
    against = reason_against(open_checkpoint(path).config)
    if against is not None:
        raise UnsupportedModel(f"{path}: the native engine does not compute this model. {against}")


def is_encoder(path: Path) -> bool:
    """Whether it gives vectors instead of text; what is wrong with its files is left to who reads them."""
    try:
        return kind_of(path) == "encoder"
    except ModelLoadError:
        return False


def require_torch(choice: Choice, path: Path) -> None:
    """Raise `ModelLoadError` that says what to install, if it is not."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelLoadError(
            f"{path} needs torch, and {' and '.join(missing)} is not installed: "
            f"pip install 'arriero[torch]'. {choice.reason}"
        )


def _check_onnx(path: Path) -> None:
    from arriero.runners.onnx.padding import is_padded

    is_padded(open_checkpoint(path).config)  # raises where heads cannot be computed


def _needs_only_other_files(path: Path) -> bool:
    """Whether the onnx engine would take the model if its weights were not pickled, and torch is here to read them."""
    if not path.is_dir() or pickled_weights(path) is None or not torch_is_installed():
        return False
    from arriero.runners.onnx.padding import is_padded

    file = path / "config.json"
    settings = Settings(file, read_json(file))
    try:
        is_padded(check_config(file, family_of(settings).config(settings)))
    except UnsupportedModel:
        return False
    return True


def _reason(path: Path, error: UnsupportedModel) -> str:
    """Why the onnx engine does not compute a model, in fewer words than the error has."""
    names = read_json(path / "config.json").get("architectures")
    if names and kind_of(path) == "encoder-decoder":
        return "It is an encoder-decoder; the onnx engine computes decoders."
    if names and names[0] not in ARCHITECTURES:
        return f"The onnx engine does not know the architecture {names[0]}."
    return f"The onnx engine does not take it: {error}"


def _refuse_quantised(path: Path) -> None:
    """Raise for weights that need kernels of a package of their own, which is rarely there and mostly for GPUs."""
    stored = read_json(path / "config.json").get("quantization_config")
    method = stored.get("quant_method") if isinstance(stored, dict) else None
    if stored is not None and method != "bitsandbytes":
        raise UnsupportedModel(
            f"{path / 'config.json'}: the weights are quantised as {brief(method)}, which Arriero does not read; "
            "take the model as it was before, or as a GGUF file, or try --engine torch."
        )


def _writes_text(path: Path) -> bool:
    """Whether the architecture is one that generates; a configuration that names none is left to transformers."""
    listed = read_json(path / "config.json").get("architectures") or []
    return not listed or any(str(name).endswith(_GENERATIVE) for name in listed)
