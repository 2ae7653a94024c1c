"""Make processors.json: what transformers' logits processors make of rows of logits after sequences of tokens.

    python tests/references/processors.py

Needs torch and transformers; the tests that read the file do not.
"""

import json
import random
from pathlib import Path

import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

FILE = Path(__file__).with_suffix(".json")

VOCAB_SIZE = 30
END = [3, 17]
PARAMETERS = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"min_tokens": 4},
    {"repetition_penalty": 1.1, "no_repeat_ngram_size": 2, "min_tokens": 9},
]


def sequences() -> list[dict[str, list]]:
    """Prompts of several lengths with answers to them, of few different tokens, and logits after each answer token."""
    dice = random.Random(5)
    made = []
    for length, num_tokens, variety in ((1, 8, 4), (12, 10, 6), (3, 14, 3)):
        prompt, answer = ([dice.randrange(variety) for _ in range(count)] for count in (length, num_tokens))
        logits = [[round(dice.gauss(0, 3), 3) for _ in range(VOCAB_SIZE)] for _ in range(num_tokens + 1)]
        made.append({"prompt": prompt, "answer": answer, "logits": logits})
    return made


def processed(sequence: dict[str, list], parameters: dict[str, float]) -> list[list[float | None]]:
    """The logits [answer tokens + 1, VOCAB_SIZE] after the processors in the order of `generate`; None is -inf."""
    processors = LogitsProcessorList()
    if "repetition_penalty" in parameters:
        processors.append(RepetitionPenaltyLogitsProcessor(parameters["repetition_penalty"]))
    if "no_repeat_ngram_size" in parameters:
        processors.append(NoRepeatNGramLogitsProcessor(parameters["no_repeat_ngram_size"]))
    if "min_tokens" in parameters:
        processors.append(
            MinNewTokensLengthLogitsProcessor(len(sequence["prompt"]), parameters["min_tokens"], torch.tensor(END))
        )
    rows = []
    for count, logits in enumerate(sequence["logits"]):
        tokens = torch.tensor([sequence["prompt"] + sequence["answer"][:count]])
        row = processors(tokens, torch.tensor([logits]))[0].tolist()
        rows.append([None if value == -torch.inf else float(f"{value:.6g}") for value in row])
    return rows


def make() -> dict[str, list]:
    """The file's contents: `cases` name a sequence, the parameters, and the rows."""
    made = sequences()
    return {
        "sequences": made,
        "cases": [
            {"sequence": place, "parameters": parameters, "rows": processed(sequence, parameters)}
            for place, sequence in enumerate(made)
            for parameters in PARAMETERS
        ],
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(make()) + "\n")
