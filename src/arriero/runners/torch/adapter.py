"""A LoRA adapter on a model of transformers, by PEFT."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

from arriero.errors import ModelLoadError
from arriero.runners.torch.description import first_line


def attach(model: Any, path: Path, num_tokens: int, *, merge: bool) -> Any:
    """The model with the adapter in a directory, its vocabulary resized first if the tokenizer has more tokens.

    Merged, the adapter costs nothing; 8-bit weights are not fine enough to take it in.
    Raises `ModelLoadError` when PEFT is not installed, when the adapter is damaged or for another base, and when it
    does not bring the rows that a larger vocabulary needs.
    """
    if importlib.util.find_spec("peft") is None:
        raise ModelLoadError(f"{path}: adapters on the torch engine need PEFT: pip install 'arriero[torch]'.")
    from peft import PeftModel

    num_known = model.get_input_embeddings().weight.shape[0]
    if num_tokens > num_known:
        model.resize_token_embeddings(num_tokens)
    try:
        if num_tokens > num_known and not _brings_vocabulary(model, path):
            raise ValueError(f"the tokenizer has {num_tokens} tokens, the base {num_known}, and it brings no others")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapted: Any = PeftModel.from_pretrained(model, str(path))
    except Exception as error:  # PEFT, torch and safetensors have no common base of theirs
        lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        reason = lines[0] if lines else first_line(error)
        raise ModelLoadError(f"{path}: PEFT cannot attach the adapter to its base: {reason}") from error
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise ModelLoadError(f"{path}: tensors are missing: {str(warning.message)[:300]}")
    return (adapted.merge_and_unload() if merge else adapted.get_base_model()).eval()


def _brings_vocabulary(model: Any, path: Path) -> bool:
    """Whether the adapter's file has whole embeddings, and a head where the model does not share one with them."""
    from peft.utils.save_and_load import load_peft_weights

    names = list(load_peft_weights(str(path), device="cpu"))
    tables = {id(table.weight): table for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    modules = [name for name, module in model.named_modules() if any(module is table for table in tables.values())]
    return all(
        any(name.endswith((f"{module}.weight", f"{module}.base_layer.weight")) for name in names) for module in modules
    )
