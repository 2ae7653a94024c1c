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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from arriero.models.decoders.families import family_of
from arriero.models.decoders.layout import FUSED, tensor_shapes
from arriero.models.files.json_files import Settings
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


_LOCAL = {"rope_type": "default", "rope_theta": 10000.0}


def _case(name: str, model_type: str, **changes: Any) -> dict[str, Any]:
    """A config.json; `rope_theta=None` leaves that out, elsewhere null is a value."""
    settings = {"architectures": [f"{name}ForCausalLM"], "model_type": model_type, **_SIZES, **changes}
    return {key: value for key, value in settings.items() if (key, value) != ("rope_theta", None)}


_llama = partial(_case, "Llama", "llama")
_mistral = partial(_case, "Mistral", "mistral")
_qwen2 = partial(_case, "Qwen2", "qwen2")
_qwen3 = partial(_case, "Qwen3", "qwen3")
_phi3 = partial(_case, "Phi3", "phi3", original_max_position_embeddings=256)
_gemma = partial(_case, "Gemma", "gemma")
_gemma2 = partial(_case, "Gemma2", "gemma2", query_pre_attn_scalar=24, sliding_window=24)
_gemma3 = partial(_case, "Gemma3", "gemma3_text", query_pre_attn_scalar=24, sliding_window=24)
_smollm3 = partial(_case, "SmolLM3", "smollm3")
_granite = partial(
    _case,
    "Granite",
    "granite",
    attention_multiplier=0.3,
    embedding_multiplier=3.0,
    residual_multiplier=0.4,
    logits_scaling=0.7,
)
_olmo2 = partial(_case, "Olmo2", "olmo2")
_olmo3 = partial(_case, "Olmo3", "olmo3", sliding_window=24)

CASES: Mapping[str, dict[str, Any]] = {
    "llama/yarn": _llama(rope_scaling=_YARN),
    "llama/yarn_options": _llama(
        rope_parameters={**_YARN, "rope_theta": 5e5, "beta_fast": 16, "mscale": 1.0, "mscale_all_dim": 0.5},
    ),
    "llama/yarn_untruncated": _llama(
        rope_parameters={**_YARN, "rope_theta": 1e4, "truncate": False, "attention_factor": 1.25}
    ),
    "llama/dynamic": _llama(rope_scaling={"type": "dynamic", "factor": 4.0}),
    "llama/heads_of_20": _llama(head_dim=20, attention_bias=True, num_key_value_heads=1),
    "llama/gelu": _llama(hidden_act="gelu"),
    "llama/gelu_tanh": _llama(hidden_act="gelu_pytorch_tanh"),
    "mistral/window": _mistral(sliding_window=24),
    "mistral/heads_of_12": _mistral(sliding_window=24, head_dim=12),
    "mistral/no_window": _mistral(sliding_window=None, rope_theta=1e6),
    "mistral/wide_window": _mistral(sliding_window=4096, head_dim=32, num_key_value_heads=1),
    "ministral/layer_types": _case(
        "Ministral", "ministral", sliding_window=24, layer_types=["sliding_attention", "full_attention"] * 2
    ),
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
    "phi3/tied": _phi3(tie_word_embeddings=True),
    "phi3/window": _phi3(sliding_window=24, num_key_value_heads=4),
    "phi3/12_of_20_turned": _phi3(head_dim=20, num_attention_heads=3, num_key_value_heads=1, partial_rotary_factor=0.6),
    "phi3/longrope": _phi3(
        max_position_embeddings=1024,
        rope_scaling={
            "type": "longrope",
            "short_factor": [1.0, 1.1, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0],
            "long_factor": [1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0],
        },
    ),
    "phi3/partial_rotary": _phi3(
        head_dim=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        partial_rotary_factor=0.5,
        max_position_embeddings=1024,
        rope_scaling={
            "type": "longrope",
            "short_factor": [1.0, 1.1, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0],
            "long_factor": [1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0],
        },
    ),
    "gemma/legacy_activation": _gemma(hidden_act="gelu"),
    "gemma/untied": _gemma(tie_word_embeddings=False, num_key_value_heads=1, head_dim=32),
    "gemma2/soft_caps": _gemma2(attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma2/defaults": _gemma2(),
    "gemma2/no_soft_caps": _gemma2(attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True),
    "gemma3/with_images": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": _gemma3(rope_scaling={"rope_type": "linear", "factor": 8.0}, sliding_window_pattern=2),
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 16,
            "patch_size": 8,
        },
        "mm_tokens_per_image": 4,
        "eos_token_id": None,
    },
    "gemma3/local_positions": _gemma3(rope_local_base_freq=100.0, sliding_window_pattern=2),
    "gemma3/scaled": _gemma3(
        num_hidden_layers=6,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        rope_theta=1e6,
        final_logit_softcapping=3.0,
    ),
    "gemma3/rope_parameters": _gemma3(
        rope_theta=None,
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 5e5}, "sliding_attention": _LOCAL},
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "smollm3/tied": _smollm3(),
    "smollm3/listed": _smollm3(no_rope_layers=[0, 1, 1, 0], tie_word_embeddings=False, attention_bias=True),
    "smollm3/window": _smollm3(no_rope_layer_interval=2, use_sliding_window=True, sliding_window=24, mlp_bias=True),
    "granite/tied": _granite(tie_word_embeddings=True),
    "granite/biases": _granite(attention_bias=True, mlp_bias=True),
    "olmo2/untied": _olmo2(),
    "olmo2/biases": _olmo2(attention_bias=True, num_key_value_heads=4, rope_theta=5e5),
    "olmo3/window": _olmo3(rope_theta=5e5),
    "olmo3/yarn": _olmo3(
        rope_theta=None,
        rope_parameters={
            "full_attention": {**_YARN, "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "internlm3/biases": _case("InternLM3", "internlm3", qkv_bias=True, bias=True, num_key_value_heads=1),
    "seed_oss/biases": _case("SeedOss", "seed_oss", attention_out_bias=True, mlp_bias=True),
    "seed_oss/defaults": _case("SeedOss", "seed_oss"),
}
"""By family and variant."""


def write(case: str, directory: Path, **changes: Any) -> Path:
    """Make config.json, with some changes, and model.safetensors of a case in an empty directory; returns it."""
    config = {**CASES[case], **changes}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    settings = Settings(directory / "config.json", config)
    family = family_of(settings)
    family_config = family.config(settings)
    bits = np.random.PCG64(4)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, shape in tensor_shapes(family_config):
        values = uniform(bits, int(np.prod(shape))).reshape(shape)
        if "norm" in name:
            values = (0 if family.norms_from_one else 1) + values / 4
        elif len(shape) == 2 and "embed" not in name:
            values = values * np.float32(2.5 / np.sqrt(shape[1]))
        tensors[name] = values.astype(np.float32)
    for whole, parts in FUSED.get(family_config.family, {}).items():
        for layer in range(family_config.num_layers):
            pieces = [tensors.pop(f"model.layers.{layer}.{part}.weight") for part in parts]
            tensors[f"model.layers.{layer}.{whole}.weight"] = np.concatenate(pieces)
    if "text_config" in config:
        tensors = {f"language_model.{name}": values for name, values in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def prompts(case: str) -> list[list[int]]:
    """One prompt of each of `PROMPT_LENGTHS`, any token of the vocabulary."""
    bits = np.random.PCG64(2)
    size = _SIZES["vocab_size"]
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
        missing = [name for name in info["missing_keys"] if "vision" not in name and "multi_modal" not in name]
        assert not missing, (case, missing)
        assert not info["unexpected_keys"], (case, info)
        assert not info["mismatched_keys"], (case, info)
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
