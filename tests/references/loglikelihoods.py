"""How probable transformers finds some texts as SmolLM2-135M-Instruct in float32: loglikelihoods.json.

    PYTHONPATH=tests python tests/references/loglikelihoods.py SmolLM2-135M-Instruct.Q4_1.gguf

makes loglikelihoods.json; this alone needs torch and transformers. What lm-evaluation-harness asks for:

loglikelihood           for each of `PAIRS`: the sum of the continuation's log-probabilities, whether it is greedy
loglikelihood_rolling   for each of `TEXTS`: the sum of all its tokens' log-probabilities, `PREFIX` before them
generate_until          for each of `PROMPTS`: the greedy answer up to, without, the first of `UNTIL`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")
PREFIX = 1
"""The token that begins a text, `<|im_start|>`."""
PAIRS = [  # the harness moves white space at the end of the first to the second
    ("The capital of France is", " Paris"),
    ("The capital of France is", " the city of Lyon, of course"),
    ("Question: What do bees make?\nAnswer:", " Honey"),
    ("Question: What do bees make?\nAnswer:", " 蜂蜜 🍯"),
    ("1, 2, 3, 4, 5,", " 6, 7, 8, 9, 10"),
    ("Once upon a time", ", there was a little girl named Lily"),
    ("def add(a, b):", "\n    return a + b\n"),
    ("<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant", "\nHello!<|im_end|>"),
]
TEXTS = [
    "A ferry crosses the river twice a day, and nobody remembers when it began.",
    "Übermorgen ist auch noch ein Tag. 🦙",
    "for place, token in enumerate(tokens):\n    print(place, token)\n",
]
PROMPTS = ["The capital of France is", "1, 2, 3, 4, 5,", "Bees are insects that"]
UNTIL = ["\n", "."]
NUM_TOKENS = 12


def make(path: Path) -> dict[str, Any]:
    """The file's contents."""
    import torch
    from transformers import AutoTokenizer

    from references.make_real_model import load_model

    model = load_model(path)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    def score(context: list[int], tokens: list[int]) -> tuple[float, bool]:
        with torch.inference_mode():
            rows = model(torch.tensor([context + tokens])).logits[0, len(context) - 1 : -1].log_softmax(-1)
        return float(rows[range(len(tokens)), tokens].double().sum()), rows.argmax(-1).tolist() == tokens

    def answer(prompt: str) -> str:
        given = torch.tensor([ids(prompt)])
        made = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=NUM_TOKENS, do_sample=False)
        text = tokenizer.decode(made[0, given.shape[1] :], skip_special_tokens=True)
        return text[: min((text.index(stop) for stop in UNTIL if stop in text), default=None)]

    return {
        "loglikelihood": [score(ids(each), ids(each + more)[len(ids(each)) :]) for each, more in PAIRS],
        "loglikelihood_rolling": [score([PREFIX], ids(text))[0] for text in TEXTS],
        "generate_until": [answer(prompt) for prompt in PROMPTS],
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(make(Path(sys.argv[1])), ensure_ascii=False, indent=1) + "\n", "utf-8")
