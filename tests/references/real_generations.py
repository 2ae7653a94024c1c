"""What transformers' `generate` answers as SmolLM2-135M-Instruct under every kind of search: real_generations.json.

    PYTHONPATH=tests python tests/references/real_generations.py SmolLM2-135M-Instruct.Q4_1.gguf

makes real_generations.json, in about ten minutes on two cores; this alone needs torch and transformers.

The file has, for every one of `SETTINGS`, each prompt's answers, best first, the token that ended them included.
Draws are given, as in `generations`.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Collection, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from arriero.core import Beams, GenerationRequest, Sampling
from references import generations, real_model

FILE = Path(__file__).with_suffix(".json")
MAX_TOKENS = 24
LENGTHS = {8: 12, 40: 13, 120: 12, 1024: 3, 1100: 1}
"""How many prompts have how many tokens: texts, lists, code, conversations, parts of long documents."""
END, PERIOD, NEWLINE = 2, 30, 198
"""Token ids: what ends the model's turn; what ends a sentence, so that answers end in good number."""

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, repetition penalty": {"repetition_penalty": 1.3},
    "greedy, no repeated triple": {"no_repeat_ngram_size": 3},
    "sampled, typical": {"temperature": 1.0, "typical_p": 0.8},
    "sampled, min_p": {"temperature": 1.2, "min_p": 0.08},
    "sampled, penalty, top_k, top_p": {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.2},
    "beams": {"num_beams": 4},
    "beams, length 2": {"num_beams": 4, "length_penalty": 2.0},
    "beams, never early": {"num_beams": 4, "length_penalty": 2.0, "early_stopping": "never"},
    "beams, repetition penalty": {"num_beams": 4, "repetition_penalty": 1.3},
    "beams, no repeated triple": {"num_beams": 4, "no_repeat_ngram_size": 3, "length_penalty": 0.5},
    "sampled beams": {"num_beams": 4, "temperature": 1.0, "min_p": 0.05, "typical_p": 0.9},
}


def requests(settings: dict[str, Any]) -> list[GenerationRequest]:
    """One request for each of 41 prompts, 40 of them distinct; at every second length sentences end answers."""
    beams = {name: settings[name] for name in ("num_beams", "length_penalty", "early_stopping") if name in settings}
    others = {name: settings[name] for name in settings if name not in beams}
    return [
        GenerationRequest(
            id=str(place),
            prompts=(prompt,),
            max_tokens=MAX_TOKENS,
            num_choices=2 if beams else 1,
            sampling=Sampling(**{"temperature": 0.0, "seed": place, **others}),
            end_token_ids=frozenset({END, PERIOD, NEWLINE} if list(LENGTHS).index(len(prompt)) % 2 else {END}),
            beams=Beams(**beams) if beams else None,
        )
        for place, prompt in enumerate(_prompts())
    ]


def _prompts() -> list[tuple[int, ...]]:
    """The ends of prompts of the real model's other references, each of the shortest that is long enough and unused."""
    longer = sorted(real_model.prompts(), key=len)
    prompts = []
    for length, count in LENGTHS.items():
        longer = [prompt for prompt in longer if len(prompt) >= length]
        prompts += [prompt[-length:] for prompt in longer[:count]]
        del longer[:count]
    return prompts


def make(
    model: Any, names: Collection[str] = SETTINGS, lengths: Collection[int] = LENGTHS
) -> dict[str, list[list[list[int]]]]:
    """The file's contents, for some of the settings and prompts of some of the lengths."""
    read: dict[int, Any] = {}
    made: dict[str, list[list[list[int]]]] = {name: [] for name in names}
    for name in names:
        settings = SETTINGS[name]
        for length, members in groupby(requests(settings), lambda request: len(request.prompts[0])):
            if length in lengths:
                group = list(members)
                read[length] = read.get(length) or _read(model, group)
                cache = copy.deepcopy(read[length])
                cache.batch_repeat_interleave(settings.get("num_beams", 1))
                made[name] += generations.generate(model, group, cache)
    return made


def _read(model: Any, group: Sequence[GenerationRequest]) -> Any:
    """What the model makes of all but the last tokens of prompts, once for all settings: that takes the most time."""
    import torch

    with torch.inference_mode():
        prompts = torch.tensor([request.prompts[0][:-1] for request in group])
        return model(prompts, use_cache=True, logits_to_keep=1).past_key_values


if __name__ == "__main__":
    from references.make_real_model import load_model

    FILE.write_text(json.dumps(make(load_model(Path(sys.argv[1]))), separators=(",", ":")) + "\n")
