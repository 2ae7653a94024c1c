"""Small random models of every decoder family, as directories, for which tiny_families.npz holds transformers' results.

    python tests/references/tiny_families.py      makes tiny_families.npz; this alone needs torch and transformers

A case is a config.json, as transformers or the family's makers write it. Weights and prompts come from the raw bits of
a PCG64 generator, as in `tiny_models`; transformers reads the very files that the tests give to Arriero.

    <case>.logits    float32 [positions, vocabulary], of the positions that `kept` names, prompt by prompt
    <case>.greedy    int16 [prompts, NUM_GREEDY], what follows each prompt
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from arriero.models.families import family_of
from arriero.models.json_files import Settings
from arriero.models.layout import tensor_shapes
from references.tiny_models import kept, uniform

FILE = Path(__file__).with_suffix(".npz")
PROMPT_LENGTHS = (1, 9, 40, 150)
NUM_GREEDY = 12

_SIZES: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def _llama(**changes: Any) -> dict[str, Any]:
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **_SIZES, **changes}


def _mistral(**changes: Any) -> dict[str, Any]:
    return {"architectures": ["MistralForCausalLM"], "model_type": "mistral", **_SIZES, **changes}


def _qwen2(**changes: Any) -> dict[str, Any]:
    settings = {**_SIZES, "head_dim": 16, "use_sliding_window": False, "max_window_layers": 28, **changes}
    return {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **settings}


def _qwen3(**changes: Any) -> dict[str, Any]:
    return {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **_SIZES, **changes}


CASES: Mapping[str, dict[str, Any]] = {
    "llama/yarn": _llama(rope_scaling=_YARN),
    "llama/yarn_options": _llama(
        rope_parameters={**_YARN, "rope_theta": 5e5, "beta_fast": 16, "mscale": 1.0, "mscale_all_dim": 0.5},
    ),
    "llama/yarn_untruncated": _llama(
        rope_parameters={**_YARN, "rope_theta": 1e4, "truncate": False, "attention_factor": 1.25}
    ),
    "llama/dynamic": _llama(rope_scaling={"type": "dynamic", "factor": 4.0}),
    "llama/gelu": _llama(hidden_act="gelu"),
    "llama/gelu_tanh": _llama(hidden_act="gelu_pytorch_tanh"),
    "mistral/window": _mistral(sliding_window=24),
    "mistral/no_window": _mistral(sliding_window=None, rope_theta=1e6),
    "mistral/wide_window": _mistral(sliding_window=4096, head_dim=32, num_key_value_heads=1),
    "ministral/layer_types": {
        **_mistral(sliding_window=24, layer_types=["sliding_attention", "full_attention"] * 2),
        "architectures": ["MinistralForCausalLM"],
        "model_type": "ministral",
    },
    "qwen2/tied": _qwen2(tie_word_embeddings=True, sliding_window=32),
    "qwen2/untied": _qwen2(rope_theta=1e6, sliding_window=None),
    "qwen2/window": _qwen2(use_sliding_window=True, sliding_window=24, max_window_layers=2),
    "qwen2/yarn": _qwen2(rope_scaling=_YARN),
    "qwen3/tied": _qwen3(tie_word_embeddings=True, rope_theta=1e6),
    "qwen3/untied": _qwen3(head_dim=32, num_attention_heads=8, num_key_value_heads=4),
    "qwen3/bias": _qwen3(attention_bias=True),
    "qwen3/window": _qwen3(
        use_sliding_window=True,
        sliding_window=24,
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    ),
    "qwen3/llama3_rope": _qwen3(rope_scaling=_LLAMA3),
}
"""By family and variant."""


def write(case: str, directory: Path) -> Path:
    """Make the case's config.json and model.safetensors in an empty directory; returns it."""
    (directory / "config.json").write_text(json.dumps(CASES[case], indent=2))
    settings = Settings(directory / "config.json", CASES[case])
    family = family_of(settings)
    bits = np.random.PCG64(4)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, shape in tensor_shapes(family.config(settings)):
        values = uniform(bits, int(np.prod(shape))).reshape(shape)
        if "norm" in name:
            values = (0 if family.norms_from_one else 1) + values / 4
        elif len(shape) == 2 and "embed" not in name:
            values = values * np.float32(2.5 / np.sqrt(shape[1]))
        tensors[name] = values.astype(np.float32)
    for whole, parts in family.fused.items():
        for layer in range(CASES[case]["num_hidden_layers"]):
            pieces = [tensors.pop(f"model.layers.{layer}.{part}.weight") for part in parts]
            tensors[f"model.layers.{layer}.{whole}.weight"] = np.concatenate(pieces)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def prompts(case: str) -> list[list[int]]:
    """One prompt of each of `PROMPT_LENGTHS`, any token of the vocabulary."""
    bits = np.random.PCG64(2)
    size = CASES[case]["vocab_size"]
    return [(bits.random_raw(length) % size).astype(int).tolist() for length in PROMPT_LENGTHS]


def make() -> dict[str, NDArray[Any]]:
    """The file's contents, by transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # these models are too small to share
    result: dict[str, NDArray[Any]] = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as directory:
            model, info = AutoModelForCausalLM.from_pretrained(
                write(case, Path(directory)),
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
            )
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), (case, info)
        with torch.inference_mode():
            rows = [model(torch.tensor([prompt])).logits[0, kept(len(prompt))].numpy() for prompt in prompts(case)]
            greedy = [
                model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NUM_GREEDY)[0, len(prompt) :]
                for prompt in prompts(case)
            ]
        result[f"{case}.logits"] = np.concatenate(rows)
        result[f"{case}.greedy"] = np.stack([tokens.numpy() for tokens in greedy]).astype(np.int16)
    return result


if __name__ == "__main__":
    np.savez_compressed(FILE, **make())
