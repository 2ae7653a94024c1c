"""LoRA adapters of every kind over small random models, for which lora.npz holds PEFT's logits.

    python tests/references/lora.py      makes lora.json and lora.npz; this alone needs torch, transformers and PEFT

lora.json has each adapter's adapter_config.json and the names and shapes of its tensors as PEFT saves them. Their
values come from a PCG64 generator, as in `references.tiny_models`, so `write_adapter` makes the same files anywhere.

    <case>.logits    float32 [positions, vocabulary], of the positions that `kept` names, prompt by prompt
"""

from __future__ import annotations

import json
import tempfile
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from arriero.models.architecture import DecoderConfig
from references.tiny_models import CASES as BASES
from references.tiny_models import transformers_model

FILE = Path(__file__).with_suffix(".npz")
ABOUT = Path(__file__).with_suffix(".json")
PROMPT_LENGTHS = (2, 9, 21)


@dataclass(frozen=True, slots=True)
class Case:
    """One adapter: PEFT's LoraConfig, and the base it is for."""

    options: Mapping[str, Any]
    base: str = "grouped"
    num_new_tokens: int = 0
    """By how much the base's vocabulary is resized before the adapter is attached."""
    checkpoint: DecoderConfig = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "checkpoint", BASES[self.base])


_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
_ALL = [*_ATTENTION, "gate_proj", "up_proj", "down_proj"]
_WHOLE = {"modules_to_save": ["embed_tokens", "lm_head"]}

CASES: Mapping[str, Case] = {
    "plain": Case({"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}),
    "attention": Case({"r": 4, "target_modules": _ATTENTION}),
    "all_linear": Case({"r": 4, "target_modules": "all-linear"}),
    "biases": Case({"r": 4, "target_modules": "all-linear"}, base="both_biases_tied"),
    "rank_patterns": Case(
        {
            "r": 4,
            "lora_alpha": 4,
            "target_modules": _ALL,
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 6, "v_proj": 3},
            "alpha_pattern": {"^model.layers.0.self_attn.k_proj": 9, "down_proj": 1.5},
        }
    ),
    "rslora": Case({"r": 16, "lora_alpha": 4, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]}),
    "one_layer": Case({"r": 4, "target_modules": _ALL, "layers_to_transform": [1], "layers_pattern": "layers"}),
    "any_list": Case({"r": 4, "target_modules": _ALL, "layers_to_transform": 0}),
    "pattern": Case({"r": 4, "target_modules": r"model\.layers\.\d+\.(self_attn\.[qk]|mlp\.up)_proj"}),
    "excluded": Case({"r": 4, "target_modules": _ALL, "exclude_modules": ["k_proj", "layers.0.mlp.up_proj"]}),
    "odd_sizes": Case({"r": 5, "target_modules": "all-linear"}, base="odd_sizes"),
    "saved": Case({"r": 4, "target_modules": ["q_proj", "v_proj"], **_WHOLE}),
    "saved_tied": Case({"r": 4, "target_modules": ["o_proj"], "modules_to_save": ["embed_tokens"]}, "one_key_head"),
    "saved_head": Case({"r": 4, "target_modules": ["o_proj"], "modules_to_save": ["lm_head"]}, "one_key_head"),
    "resized": Case({"r": 8, "lora_alpha": 32, "target_modules": _ALL, **_WHOLE}, num_new_tokens=7),
    "resized_only": Case({"r": 4, "target_modules": ["q_proj"]}, num_new_tokens=5),
    "resized_tied": Case({"r": 4, "target_modules": ["q_proj", "embed_tokens"]}, base="one_key_head", num_new_tokens=3),
    "embeddings": Case({"r": 4, "lora_alpha": 12, "target_modules": ["embed_tokens", "gate_proj"]}),
    "head": Case({"r": 4, "target_modules": ["lm_head", "up_proj"]}),
}
"""What adapters differ in."""


def prompts(case: Case) -> list[list[int]]:
    """Any tokens of the adapter's vocabulary; the newest ones are among them."""
    vocabulary = case.checkpoint.vocab_size + case.num_new_tokens
    bits = np.random.PCG64(5)
    drawn = [(bits.random_raw(length) % vocabulary).astype(int).tolist() for length in PROMPT_LENGTHS]
    drawn[-1][3:6] = range(vocabulary - 3, vocabulary)
    return drawn


def kept(length: int) -> list[int]:
    """The positions of a prompt whose logits the file holds."""
    return sorted({0, length // 2, length - 1})


def write_adapter(name: str, directory: Path, vocab_size: int | None = None, **changes: Any) -> Path:
    """Write a case's adapter into a new directory; `changes` are made to its configuration.

    `vocab_size` is for an adapter that resizes the vocabulary: to another number of tokens than the case says.
    """
    about = json.loads(ABOUT.read_text())[name]
    own = CASES[name].checkpoint.vocab_size + CASES[name].num_new_tokens
    shapes = {
        name: [vocab_size or own if size == own else size for size in shape] for name, shape in about["tensors"].items()
    }
    return _write(directory, about["config"] | changes, shapes)


def _write(directory: Path, config: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> Path:
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file({name: _values(name, shape) for name, shape in shapes.items()}, directory / "adapter_model.safetensors")
    return directory


def _values(name: str, shape: list[int]) -> NDArray[np.float32]:
    """Sized so that the change matters as much as the base; the same for the same name and shape."""
    bits = np.random.PCG64(zlib.crc32(f"{name} {shape}".encode()))
    values = ((bits.random_raw(int(np.prod(shape))) >> 40).astype(np.float64) / 2**23 - 1).reshape(shape)
    if "lora_A" in name or "lm_head" in name:
        values *= 2.5 / np.sqrt(shape[1])
    elif "embedding_A" not in name and "embed_tokens.weight" not in name:
        values /= 2
    return values.astype(np.float32)


def peft_model(case: Case, directory: Path, config: Mapping[str, Any] | None = None) -> Any:
    """The case's base model in PEFT: with the adapter in `directory`, or with a new one that is saved there."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaForCausalLM

    with tempfile.TemporaryDirectory() as base, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice on resized vocabularies and tied weights
        transformers_model(case.checkpoint).save_pretrained(base)
        model = LlamaForCausalLM.from_pretrained(base)
        if case.num_new_tokens:
            model.resize_token_embeddings(case.checkpoint.vocab_size + case.num_new_tokens)
        if config is None:
            return PeftModel.from_pretrained(model, directory).eval()
        made = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config)).eval()
        made.save_pretrained(directory)
        return made


def reference(case: Case, directory: Path) -> NDArray[np.float32]:
    """PEFT's logits of an adapter's prompts, at the positions that are kept."""
    import torch

    model = peft_model(case, directory)
    with torch.inference_mode():
        rows = [model(torch.tensor([prompt])).logits[0, kept(len(prompt))].numpy() for prompt in prompts(case)]
    return np.concatenate(rows)


def saved(case: Case, directory: Path) -> dict[str, Any]:
    """How PEFT saves a new adapter of a case: its configuration, and the shapes of its tensors."""
    from safetensors import safe_open

    peft_model(case, directory, case.options)
    config = json.loads((directory / "adapter_config.json").read_text()) | {"base_model_name_or_path": "base"}
    for name in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(config[name], list):  # sets, saved in any order
            config[name].sort()
    with safe_open(directory / "adapter_model.safetensors", framework="numpy") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
    return {"config": config, "tensors": shapes}


def make() -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """The files' contents, by PEFT in float32."""
    about, logits = {}, {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as directory:
            about[name] = saved(case, Path(directory) / "new")
            written = _write(Path(directory) / "written", about[name]["config"], about[name]["tensors"])
            logits[f"{name}.logits"] = reference(case, written)
    return about, logits


if __name__ == "__main__":
    made, arrays = make()
    ABOUT.write_text(json.dumps(made, indent=1) + "\n")
    np.savez_compressed(FILE, **arrays)
