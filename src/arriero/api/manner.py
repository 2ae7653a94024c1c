"""How requests for one model are taken: its profile, its limits, and what stands for what they leave out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from arriero.api.body import validated
from arriero.api.limits import Limits
from arriero.api.parameters import ChatParameters, CompletionParameters, GenerationParameters
from arriero.api.profile import OPENAI, Profile
from arriero.errors import InvalidRequest, UnknownModel
from arriero.pool import Pool

_NO_DEFAULT = frozenset({"model", "messages", "prompt", "stream", "stream_options"})
"""What is the request's own business."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """What the operator says of the requests for one model, or for all."""

    profile: Profile = OPENAI
    limits: Limits = field(default_factory=Limits)
    chat_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of chats that stand for what a request leaves out, with those of the profile."""
    completion_defaults: Mapping[str, Any] = field(default_factory=dict)
    """The same of text completions."""

    def complete_chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """A chat's body with the defaults; in the profile alpaca a string is one message, the user's."""
        whole = {**self.chat_defaults, **body}
        if "max_completion_tokens" in body and "max_tokens" not in body:
            whole.pop("max_tokens", None)
        return self.spell_out(whole)

    def complete_text(self, body: dict[str, Any]) -> dict[str, Any]:
        """The same of a text completion."""
        return {**self.completion_defaults, **body}

    def spell_out(self, body: dict[str, Any]) -> dict[str, Any]:
        """The same body with its message as messages."""
        if self.profile.alpaca and isinstance(body.get("messages"), str):
            body["messages"] = [{"role": "user", "content": body["messages"]}]
        return body


def manner(profile: Profile, limits: Limits, defaults: Mapping[str, Any] = MappingProxyType({})) -> Manner:
    """With parameters of chat and text completions, each for those endpoints that have it.

    Raises `InvalidRequest` for one that neither has, or that is wrong.
    """
    chat = {"messages": [{"role": "user", "content": "a"}]}
    return Manner(
        profile=profile,
        limits=limits,
        chat_defaults={**profile.chat_defaults, **_known(ChatParameters, defaults, chat)},
        completion_defaults={**profile.completion_defaults, **_known(CompletionParameters, defaults, {"prompt": "a"})},
    )


def _known(kind: type[GenerationParameters], defaults: Mapping[str, Any], least: dict[str, Any]) -> dict[str, Any]:
    """Those of the defaults that are parameters of this kind, once they are checked beside the `least` of a request."""
    known = (ChatParameters.model_fields.keys() | CompletionParameters.model_fields.keys()) - _NO_DEFAULT
    for name in defaults.keys() - known:
        raise InvalidRequest(f"'{name}' is no parameter that can have a default", param=name)
    found = {name: value for name, value in defaults.items() if name in kind.model_fields}
    _, ignored = validated(kind, {"model": "a", **least, **found})
    if ignored:
        raise InvalidRequest(f"'{ignored[0]}' has no effect on this server", param=ignored[0])
    return found


class Manners:
    """Finds the manner of the model that a request names."""

    def __init__(self, pool: Pool, general: Manner, own: Mapping[str, Manner]) -> None:
        """`own` are those of models that have one, by their own names; `general` is that of the others."""
        self._pool = pool
        self._general = general
        self._own = own

    def of(self, name: object) -> Manner:
        """Of the model that answers to a name or an alias, or where there is none."""
        if not self._own:
            return self._general
        try:
            own = self._pool.name_of(name) if isinstance(name, str) else self._pool.default_name
        except UnknownModel:
            own = self._pool.default_name  # which answers in its place, if anybody does
        return self._own.get(own, self._general)
