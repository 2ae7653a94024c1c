"""Small random models of the LLaMA family, for which tiny_models.npz holds transformers' logits.

    python tests/references/tiny_models.py      makes tiny_models.npz; this alone needs torch and transformers

Weights and prompts come from the raw bits of a PCG64 generator, which NumPy guarantees never to change, and
exact arithmetic on them: the tests make the same models without torch and without any file.

    <case>.logits    float32 [positions, vocabulary], of the positions that `kept` names, prompt by prompt
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arriero.errors import ModelLoadError
from arriero.models.architecture import DecoderConfig
from arriero.models.decoders.layout import tensor_shapes

FILE = Path(__file__).with_suffix(".npz")
PROMPT_LENGTHS = (1, 2, 9, 40, 150)

_SMALL: dict[str, Any] = {
    "family": "llama",
    "num_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "context": 256,
    "norm_epsilon": 1e-5,
    "rope_theta": 10000.0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _config(**changes: Any) -> DecoderConfig:
    return DecoderConfig(**{**_SMALL, **changes})


CASES: Mapping[str, DecoderConfig] = {
    "grouped": _config(),
    "every_head_its_own": _config(num_kv_heads=4),
    "one_key_head": _config(num_kv_heads=1, tie_embeddings=True),
    "attention_bias": _config(attention_bias=True, output_bias=True),
    "mlp_bias": _config(mlp_bias=True, num_layers=3),
    "both_biases_tied": _config(attention_bias=True, output_bias=True, mlp_bias=True, tie_embeddings=True),
    "linear_rope": _config(rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "llama3_rope": _config(rope_scaling=_LLAMA3, rope_theta=500000.0),
    "wide_heads": _config(num_heads=2, num_kv_heads=1, head_dim=64, rope_theta=1e6),
    "odd_sizes": _config(
        hidden_size=72, intermediate_size=200, num_heads=3, num_kv_heads=3, head_dim=48, vocab_size=311, num_layers=3
    ),
    "like_smollm": _config(
        hidden_size=96,
        intermediate_size=256,
        num_heads=3,
        num_kv_heads=1,
        head_dim=32,
        rope_theta=100000.0,
        tie_embeddings=True,
    ),
}
"""What the family's checkpoints differ in: sharing of key heads, biases, tying, rotary positions, sizes."""


@dataclass(frozen=True, slots=True)
class RandomCheckpoint:
    """A `Checkpoint` in memory, the same for the same configuration and seed on every machine."""

    config: DecoderConfig
    identity: str
    tensors: Mapping[str, NDArray[np.float32]] = field(repr=False)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """See `Checkpoint.tensor`."""
        if name not in self.tensors:
            raise ModelLoadError(f"{self.identity}: has no tensor {name}.")
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors


def random_checkpoint(config: DecoderConfig, seed: int = 1) -> RandomCheckpoint:
    """Weights sized so that every layer matters and logits spread over a few units."""
    bits = np.random.PCG64(seed)
    tensors = {}
    for name, shape in tensor_shapes(config):
        values = uniform(bits, int(np.prod(shape))).reshape(shape)
        if "norm" in name:
            values = 1 + values / 4
        elif len(shape) == 2 and "embed" not in name:
            values *= np.float32(2.5 / np.sqrt(shape[1]))
        tensors[name] = values.astype(np.float32)
    return RandomCheckpoint(config, hashlib.sha256(f"{seed} {config}".encode()).hexdigest(), tensors)


def prompts(config: DecoderConfig) -> list[list[int]]:
    """One prompt of each of `PROMPT_LENGTHS`, any token of the vocabulary."""
    bits = np.random.PCG64(2)
    return [(bits.random_raw(length) % config.vocab_size).astype(int).tolist() for length in PROMPT_LENGTHS]


def kept(length: int) -> list[int]:
    """The positions of a prompt whose logits the file holds: five, evenly spread, the last among them."""
    return sorted({round(step * (length - 1) / 4) for step in range(5)})


def uniform(bits: np.random.PCG64, count: int) -> NDArray[np.float32]:
    """Multiples of 2**-23 in [-1, 1)."""
    return ((bits.random_raw(count) >> 40).astype(np.float64) / 2**23 - 1).astype(np.float32)


def transformers_model(config: DecoderConfig) -> Any:
    """The `random_checkpoint` of a configuration as a `LlamaForCausalLM` in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.context,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={"rope_type": "default", **(config.rope_scaling or {}), "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_embeddings,
            attention_bias=config.attention_bias,
            mlp_bias=config.mlp_bias,
        )
    ).eval()
    tensors = random_checkpoint(config).tensors
    missing, unexpected = model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()}, strict=False)
    assert missing == (["lm_head.weight"] if config.tie_embeddings else []), missing
    assert not unexpected, unexpected
    return model


def make() -> dict[str, NDArray[np.float32]]:
    """The file's contents, by transformers in float32."""
    import torch

    result = {}
    for name, config in CASES.items():
        model = transformers_model(config)
        with torch.inference_mode():
            rows = [model(torch.tensor([prompt])).logits[0, kept(len(prompt))].numpy() for prompt in prompts(config)]
        result[f"{name}.logits"] = np.concatenate(rows)
    return result


if __name__ == "__main__":
    np.savez_compressed(FILE, **make())
