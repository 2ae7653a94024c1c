"""From a directory to a runner: devices, number formats, and how the model lets its rows be computed."""

from __future__ import annotations

import importlib.util
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from arriero.compute import Runner, RunnerInfo
from arriero.errors import ConfigError, ModelLoadError, UnsupportedModel
from arriero.runners.torch.adapter import attach
from arriero.runners.torch.alone import AloneRunner
from arriero.runners.torch.description import Description, describe, first_line
from arriero.runners.torch.int8 import to_int8
from arriero.runners.torch.network import Network
from arriero.runners.torch.runner import TorchRunner
from arriero.runners.torch.trial import EXACT, ROUNDED, reads_alone, reads_packs

logger = logging.getLogger(__name__)

Format = Literal["fp32", "bf16", "fp16", "int8"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A runner, and what is to be told about its model."""

    runner: Runner
    description: Description
    parameters: int
    source_format: str
    weights: Format
    device: str
    batched: bool
    """Whether rows share a call; if not, they are computed one after the other."""
    memory: int
    """Bytes free on the GPUs that hold the model; 0 where it lies in main memory."""


def load_runner(
    path: Path,
    *,
    weights: str = "auto",
    slots: int,
    context: int = 0,
    threads: int,
    gpus: str | None = None,
    trust_remote_code: bool = False,
    adapter: Path | None = None,
    num_tokens: int = 0,
) -> Loaded:
    """A runner for the model in a Hugging Face directory: any that transformers can generate text with.

    `weights` is `auto` (fp32 on the CPU, half precision on GPUs), `fp32`, `bf16`, `fp16` or `int8`. `context` 0 is what
    the model was made for. `gpus` are CUDA device numbers, `none` keeps to the CPU, None takes all that there are. An
    `adapter` is in PEFT's format; where the tokenizer's `num_tokens` are more than the model's, the vocabulary is
    resized before.

    Raises:
        ModelLoadError, UnsupportedModel: the files are missing, damaged, or not for transformers.
        ConfigError: the settings do not fit the model or the machine.
    """
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    on_gpus = _on_gpus(gpus)
    form = _format(weights, on_gpus)
    description = describe(path, trust_remote_code=trust_remote_code)
    tokens = _context(description, context)
    model = _load(description, form, on_gpus)
    if adapter is not None:
        model = attach(model, adapter, num_tokens, merge=not (form == "int8" and on_gpus))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if form == "int8" and not on_gpus:
        to_int8(model)
    network = Network(model)
    runner, batched = _runner(
        network,
        EXACT if form == "fp32" else ROUNDED,
        num_slots=slots,
        context=tokens,
        source_context=_source_context(description, context),
        decoder_start=description.decoder_start,
    )
    network.ban([token for token in description.banned if token < runner.info.vocab_size])
    return Loaded(
        runner=runner,
        description=description,
        parameters=parameters,
        source_format=_stored(description.config),
        weights=form,
        device=str(model.device.type),
        batched=batched,
        memory=sum(torch.cuda.mem_get_info(device)[0] for device in range(torch.cuda.device_count())) if on_gpus else 0,
    )


def _on_gpus(gpus: str | None) -> bool:
    """Whether to use CUDA devices; lets this process see no others than those asked for."""
    if gpus == "none":
        return False
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # heard where no CUDA call was made yet
    available = torch.cuda.is_available()
    if gpus is not None and torch.cuda.device_count() < len(gpus.split(",")):
        found = f"{torch.cuda.device_count()} of these" if available else "no CUDA device"
        raise ConfigError(f"--gpus is {gpus}, but PyTorch finds {found} on this machine")
    return available


def _format(weights: str, on_gpus: bool) -> Format:
    if weights == "auto":
        return ("bf16" if torch.cuda.is_bf16_supported() else "fp16") if on_gpus else "fp32"
    if weights == "int8" and on_gpus and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("--weights int8 on a GPU needs bitsandbytes: pip install bitsandbytes")
    if weights in ("fp32", "bf16", "fp16", "int8"):
        return weights  # type: ignore[return-value]
    raise ConfigError(f"--weights is {weights}, but the torch engine computes with fp32, bf16, fp16 or int8")


def _context(description: Description, wanted: int) -> int:
    if description.is_limit and wanted > description.context:
        raise ConfigError(f"--context is {wanted}, but the model was made for {description.context} tokens at most")
    return wanted or description.context


def _load(description: Description, form: Format, on_gpus: bool) -> Any:
    more: dict[str, Any] = {"device_map": "auto"} if on_gpus else {}
    if form == "int8" and on_gpus:
        more["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    kind = (
        transformers.AutoModelForSeq2SeqLM
        if description.config.is_encoder_decoder
        else transformers.AutoModelForCausalLM
    )
    try:
        model, report = kind.from_pretrained(
            description.path,
            config=description.config,
            dtype=_DTYPES.get(form, "auto"),
            trust_remote_code=description.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            **more,
        )
    except Exception as error:  # transformers, torch and safetensors have no common base of theirs
        unknown = "Unrecognized configuration class" in str(error)
        kind_of_error = UnsupportedModel if unknown else ModelLoadError
        raise kind_of_error(f"{description.path}: transformers cannot load it: {first_line(error)}") from error
    if report["missing_keys"]:
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelLoadError(
            f"{description.path}: {len(report['missing_keys'])} tensors are missing, among them {some}."
        )
    if report["unexpected_keys"]:
        logger.warning("%s: tensors without a place are not used: %s", description.path, report["unexpected_keys"])
    return model.eval()


def _source_context(description: Description, wanted: int) -> int:
    if not wanted or not description.source_context:
        return description.source_context
    return min(wanted, description.source_context) if description.is_limit else wanted


def _runner(network: Network, tolerance: float, **common: Any) -> tuple[Runner, bool]:
    """The fastest way to compute the model, and whether rows share a call; `common` are fields of `RunnerInfo`."""
    for together in (True, False):
        if findings := reads_packs(network, tolerance, together=together):
            info = RunnerInfo(invariant=False, **findings, **common)
            return TorchRunner(network, info, together=together), together
    family = network.model.config.model_type
    if network.is_encoder_decoder:
        raise UnsupportedModel(f"The decoder of {family} models does not go by keys and values of a known kind.")
    loner, findings = reads_alone(network, tolerance)
    if not loner.remembers:
        logger.warning("%s models keep nothing of what they read: every token costs all before it", family)
    return AloneRunner(loner, RunnerInfo(invariant=True, chunked_prefill=False, **findings, **common)), False


def _stored(config: Any) -> str:
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    return names.get(config.dtype, "F32")
