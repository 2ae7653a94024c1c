"""How probable the model finds tokens: before processors, temperature and filters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from arriero.core import Logprob
from arriero.engine.sampling import largest


def score(logits: NDArray[np.float32], token: int, num_top: int) -> Logprob:
    """A token's log-probability and those of the `num_top` most probable tokens, from a row [vocab_size]."""
    return score_all(logits, [token], num_top)[0]


def score_all(logits: NDArray[np.float32], tokens: list[int], num_top: int) -> list[Logprob]:
    """The same for several tokens that might come at one place; of equally probable ones the smaller id comes first."""
    whole = log_sum(logits)
    top: tuple[tuple[int, float], ...] = ()
    if num_top:
        places = largest(logits, num_top) if num_top < len(logits) else np.arange(len(logits))
        places = places[np.argsort(-logits[places], kind="stable")][:num_top]
        top = tuple((int(place), float(logits[place]) - whole) for place in places)
    return [Logprob(float(logits[token]) - whole, top) for token in tokens]


def log_sum(logits: NDArray[np.float32]) -> float:
    """The natural logarithm of the sum of a row's exponentials, which makes logits log-probabilities."""
    peak = logits.max()
    return float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
