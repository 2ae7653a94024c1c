"""What the operator allows one request to ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arriero.errors import InvalidRequest

LIMITED = {
    "max_tokens": "completion_max_tokens",
    "max_completion_tokens": "completion_max_tokens",
    "min_tokens": "completion_max_tokens",
    "n": "completion_max_n",
    "best_of": "completion_max_n",
    "num_beams": "completion_max_n",
    "logprobs": "completion_max_logprobs",
    "top_logprobs": "completion_max_logprobs",
    "prompt_logprobs": "completion_max_logprobs",
}
"""Parameters by name, and the setting that is the most they may be."""
_FIELDS = {name: setting.removeprefix("completion_") for name, setting in LIMITED.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The settings `completion_max_...`; 0 tokens means as many as the context has."""

    max_prompt: int = 0
    max_tokens: int = 0
    max_n: int = 128
    max_logprobs: int = 20

    def check(self, **values: int | None) -> None:
        """Raise `InvalidRequest` for the first parameter of this name whose value is past its limit."""
        for name, value in values.items():
            if value is None:
                continue
            limit: int = getattr(self, _FIELDS[name])
            if value > limit and (limit or _FIELDS[name] != "max_tokens"):
                raise above(name, limit)

    def check_prompts(self, prompts: Sequence[Sequence[int]], param: str) -> None:
        """Raise `InvalidRequest` for a prompt that has more tokens than allowed; `param` is where it came from."""
        longest = max(map(len, prompts))
        if self.max_prompt and longest > self.max_prompt:
            raise InvalidRequest(
                f"Invalid '{param}': {longest} tokens, but this server takes at most {self.max_prompt} in a prompt.",
                param=param,
                code="prompt_above_max_length",
            )


def above(name: str, limit: int) -> InvalidRequest:
    """The error for an integer that is larger than it may be."""
    return InvalidRequest(f"Invalid '{name}': expected a value <= {limit}.", param=name, code="integer_above_max_value")
