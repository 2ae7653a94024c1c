"""Whose habits the API has: OpenAI's, or those of the demo server of Chinese-LLaMA-Alpaca.

Both answer through the same engine and take the same parameters; they differ in defaults, templates and what an
answer shows. Chosen by the operator, never guessed from a request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import shortuuid

from arriero.wire.headers import new_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What one of the two does differently."""

    name: str
    completion_tokens: int
    """`max_tokens` of text completions where a request has none, if the context has room for it."""
    chat_tokens: int | None = None
    """The same for chat; None is all that the context has left."""
    completion_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Parameters that have other defaults than those that `arriero.api.parameters` declares."""
    chat_defaults: Mapping[str, Any] = field(default_factory=dict)
    alpaca: bool = False
    """Alpaca's habits: its instruction template around prompts, conversations of one string, answers without usage,
    finish reason and white space around them, a chat's choices after the messages, any model name."""
    new_id: Callable[[str], str] = new_id
    """From an answer's prefix to its id."""


OPENAI = Profile(name="openai", completion_tokens=4096)

ALPACA = Profile(
    name="alpaca",
    completion_tokens=128,
    chat_tokens=128,
    completion_defaults={"temperature": 0.1, "top_p": 0.75, "top_k": 40},
    chat_defaults={"temperature": 0.7, "top_p": 1.0, "top_k": 40},
    alpaca=True,
    new_id=lambda prefix: prefix + shortuuid.uuid(),
)

PROFILES = {profile.name: profile for profile in (OPENAI, ALPACA)}
