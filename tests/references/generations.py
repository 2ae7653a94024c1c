"""What transformers' `generate` answers on a small random model under every kind of search: generations.json.

    PYTHONPATH=tests python tests/references/generations.py

makes generations.json, in minutes; this alone needs torch and transformers.

The file has, for every one of `SETTINGS`, each prompt's answers, best first, the token that ended them included.

Beam-sample draws with `torch.multinomial`. Here that draws from given numbers, the ones that Arriero's engine takes,
by inversion of the cumulative distribution: what is compared is the search around it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arriero.core import Beams, GenerationRequest, Sampling
from arriero.engine.sampling import uniform, uniforms
from references import tiny_models

FILE = Path(__file__).with_suffix(".json")
CONFIG = tiny_models.CASES["grouped"]
LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34, 60, 120) * 4
MAX_TOKENS = 14

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, repetition penalty": {"repetition_penalty": 1.4},
    "greedy, repetition reward": {"repetition_penalty": 0.8},
    "greedy, no repeated pair": {"no_repeat_ngram_size": 2, "repetition_penalty": 0.7},
    "greedy, no repeated token": {"no_repeat_ngram_size": 1},
    "greedy, at least ten": {"min_tokens": 10},
    "beams": {"num_beams": 4},
    "beams, length 1.2": {"num_beams": 4, "length_penalty": 1.2},
    "beams, length 0.6": {"num_beams": 4, "length_penalty": 0.6},
    "beams, length 2": {"num_beams": 4, "length_penalty": 2.0},
    "beams, early": {"num_beams": 4, "early_stopping": True, "length_penalty": 1.2},
    "beams, never early": {"num_beams": 4, "early_stopping": "never", "length_penalty": 1.2},
    "beams, never early, length 0": {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.0},
    "beams, repetition penalty": {"num_beams": 4, "repetition_penalty": 1.3},
    "beams, repetition reward": {"num_beams": 4, "repetition_penalty": 0.6},
    "beams, no repeated pair": {"num_beams": 4, "no_repeat_ngram_size": 2, "repetition_penalty": 0.6},
    "beams, at least six": {"num_beams": 2, "min_tokens": 6, "length_penalty": -1.0},
    "sampled beams": {"num_beams": 4, "temperature": 1.0},
    "sampled beams, cold": {"num_beams": 3, "temperature": 0.5, "repetition_penalty": 1.2},
    "sampled beams, filtered": {"num_beams": 4, "temperature": 1.3, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
    "sampled beams, typical": {"num_beams": 4, "temperature": 1.1, "typical_p": 0.8, "length_penalty": 0.6},
}


def requests(settings: dict[str, Any]) -> list[GenerationRequest]:
    """One request for each of 40 prompts, with one, four or twelve end tokens."""
    bits = np.random.PCG64(3)
    beams = {name: settings[name] for name in ("num_beams", "length_penalty", "early_stopping") if name in settings}
    others = {name: settings[name] for name in settings if name not in (*beams, "min_tokens")}
    made = []
    for place, length in enumerate(LENGTHS):
        tokens = (bits.random_raw(length + 12) % CONFIG.vocab_size).astype(int).tolist()
        made.append(
            GenerationRequest(
                id=str(place),
                prompts=(tuple(tokens[12:]),),
                max_tokens=MAX_TOKENS,
                min_tokens=settings.get("min_tokens", 0),
                num_choices=2 if beams else 1,
                sampling=Sampling(**{"temperature": 0.0, "seed": place, **others}),
                end_token_ids=frozenset(tokens[: (1, 4, 12)[place % 3]]),
                beams=Beams(**beams) if beams else None,
            )
        )
    return made


def generate(model: Any, requests: Sequence[GenerationRequest], cache: Any = None) -> list[list[list[int]]]:
    """The answers of transformers' model to each request, best first; the requests differ in prompt and seed alone.

    Prompts are equally long, so nothing is padded. `cache` holds what the model made of all but their last tokens.
    """
    import torch

    request = requests[0]
    sampling, ends = request.sampling, sorted(request.end_token_ids)
    prompts = torch.tensor([request.prompts[0] for request in requests])
    options: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        options = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "typical_p")}
        options |= {"do_sample": True, "min_p": sampling.min_p or None}
    if request.beams:
        options |= {name: getattr(request.beams, name) for name in ("num_beams", "length_penalty", "early_stopping")}
    with given_draws(requests), torch.inference_mode():
        answers = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=request.max_tokens,
            min_new_tokens=request.min_tokens or None,
            num_return_sequences=request.num_choices,
            eos_token_id=ends,
            pad_token_id=ends[0],
            repetition_penalty=sampling.repetition_penalty,
            no_repeat_ngram_size=sampling.no_repeat_ngram_size,
            past_key_values=cache,
            **options,
        )
    said = [_until_end(answer, ends) for answer in answers[:, prompts.shape[1] :].tolist()]
    return [said[start : start + request.num_choices] for start in range(0, len(said), request.num_choices)]


def _until_end(tokens: list[int], ends: list[int]) -> list[int]:
    places = [place for place, token in enumerate(tokens) if token in ends]
    return tokens[: places[0] + 1] if places else tokens


@contextmanager
def given_draws(requests: Sequence[GenerationRequest]) -> Iterator[None]:
    """Let `torch.multinomial` draw, one after another without replacement, by the numbers of these requests."""
    import torch

    position = len(requests[0].prompts[0])

    def multinomial(probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        nonlocal position
        drawn = []
        for request, row in zip(requests, probabilities.double().numpy(), strict=True):
            seed = request.sampling.seed
            several = request.beams is not None
            numbers = uniforms(seed, 0, position, num_samples) if several else [uniform(seed, 0, position)]
            drawn.append(_draw(row.copy(), numbers))
        position += 1
        return torch.tensor(drawn)

    own, torch.multinomial = torch.multinomial, multinomial
    try:
        yield
    finally:
        torch.multinomial = own


def _draw(weights: NDArray[np.float64], numbers: Sequence[float]) -> list[int]:
    impossible = iter(np.flatnonzero(weights == 0))
    places: list[int] = []
    for number in numbers:
        cumulative = weights.cumsum()
        if cumulative[-1]:
            places.append(int(np.searchsorted(cumulative, number * cumulative[-1], side="right")))
            weights[places[-1]] = 0
        else:  # where torch would give up
            places.append(int(next(impossible)))
    return places


def make(prompts: slice = slice(None)) -> dict[str, list[list[list[int]]]]:
    """The file's contents, for some of the prompts."""
    model = tiny_models.transformers_model(CONFIG)
    return {
        name: [answers for request in requests(settings)[prompts] for answers in generate(model, [request])]
        for name, settings in SETTINGS.items()
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(make(), separators=(",", ":")) + "\n")
