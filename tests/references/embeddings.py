"""embeddings.npz: embeddings that transformers computes with decoders; the tests read it without torch.

    PYTHONPATH=tests python tests/references/embeddings.py SmolLM2-135M-Instruct.Q4_1.gguf

An embedding is the mean of the last hidden states over the tokens of the attention mask, divided by its length. The
inputs of a model go through it as one padded batch, so that the mask matters.

    <case>   float32 [inputs, hidden]   of each of `tiny_models.CASES`, for its `prompts`
    real     float32 [inputs, hidden]   of SmolLM2-135M-Instruct, for `real_inputs()`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from references import real_model, tiny_models

FILE = Path(__file__).with_suffix(".npz")


def real_inputs() -> list[tuple[int, ...]]:
    """Prompts of 400 tokens at most, every ninth of them, and a single token."""
    short = [prompt for prompt in real_model.prompts() if len(prompt) <= 400]
    return [*short[::9], short[0][:1]]


def embeddings(model: Any, inputs: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """As transformers computes them, float32 [inputs, hidden]."""
    import torch

    longest = max(map(len, inputs))
    ids = torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in inputs])
    mask = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in inputs])
    with torch.inference_mode():
        states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        result: NDArray[np.float32] = torch.nn.functional.normalize(means, dim=1).numpy()
    return result


def make_tiny() -> dict[str, NDArray[np.float32]]:
    """Of the random models."""
    return {
        name: embeddings(tiny_models.transformers_model(config), tiny_models.prompts(config))
        for name, config in tiny_models.CASES.items()
    }


def make_real(path: Path) -> NDArray[np.float32]:
    """Of the catalog's default model."""
    from references.make_real_model import load_model

    return embeddings(load_model(path), real_inputs())


if __name__ == "__main__":
    np.savez_compressed(FILE, **make_tiny(), real=make_real(Path(sys.argv[1])))
