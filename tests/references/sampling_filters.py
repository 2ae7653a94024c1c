"""Make sampling_filters.json: what transformers' warpers keep of a few rows of logits.

    python tests/references/sampling_filters.py

Needs torch and transformers; the tests that read the file do not.
"""

import json
import random
from pathlib import Path

import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

FILE = Path(__file__).with_suffix(".json")

PARAMETERS = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 1.7},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 0.8, "top_k": 7},
    {"temperature": 1.0, "top_k": 100000},
    {"temperature": 1.0, "top_p": 0.0},
    {"temperature": 1.0, "top_p": 0.3},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.5, "top_p": 0.999},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.6, "min_p": 0.3},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.95},
    {"temperature": 1.2, "top_k": 12, "top_p": 0.8, "min_p": 0.1},
    {"temperature": 1.4, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.0, "typical_p": 0.001},
    {"temperature": 1.0, "typical_p": 0.2},
    {"temperature": 0.5, "typical_p": 0.7},
    {"temperature": 2.5, "typical_p": 0.95},
    {"temperature": 1.1, "top_k": 30, "typical_p": 0.5},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.6},
]


def rows() -> list[list[float]]:
    """Rows of distinct logits: peaked, flat, and one of more than a few hundred tokens."""
    dice = random.Random(7)
    return [
        [round(dice.gauss(0, spread), 4) for _ in range(size)] for size, spread in ((40, 4.0), (50, 0.5), (700, 2.5))
    ]


def filtered(logits: list[float], parameters: dict[str, float]) -> torch.Tensor:
    """Probabilities [vocab_size] after the warpers in the order of transformers' `generate`."""
    scores = TemperatureLogitsWarper(parameters["temperature"])(None, torch.tensor([logits]))
    if "top_k" in parameters:
        scores = TopKLogitsWarper(int(parameters["top_k"]))(None, scores)
    if "top_p" in parameters:
        scores = TopPLogitsWarper(parameters["top_p"])(None, scores)
    if "min_p" in parameters:
        scores = MinPLogitsWarper(parameters["min_p"])(None, scores)
    if "typical_p" in parameters:
        scores = TypicalLogitsWarper(parameters["typical_p"])(None, scores)
    return scores.softmax(dim=-1)[0]


def make() -> dict[str, list]:
    """The file's contents: `cases` name a row, the parameters, the ids kept and the probability of each."""
    cases = []
    for row, logits in enumerate(rows()):
        for parameters in PARAMETERS:
            probabilities = filtered(logits, parameters)
            kept = probabilities.nonzero()[:, 0].tolist()
            shares = [float(f"{probabilities[token]:.5g}") for token in kept]
            cases.append({"row": row, "parameters": parameters, "kept": kept, "probabilities": shares})
    return {"rows": rows(), "cases": cases}


if __name__ == "__main__":
    FILE.write_text(json.dumps(make()) + "\n")
