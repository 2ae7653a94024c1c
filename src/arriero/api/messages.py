"""The messages of a conversation, and what of them goes into the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from arriero.api.objects import JSONObject, ignored, refused
from arriero.errors import InvalidRequest


class TextPart(JSONObject):
    """A piece of a message's content; only text is understood."""

    type: Literal["text"] = Field(description="Kind of the part.")
    text: str = Field(description="The text.")
    prompt_cache_breakpoint: Annotated[Any, ignored()] = Field(None, description="Where a reusable prefix ends.")


class Message(JSONObject):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description="Who says it.")
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = Field(
        None, description="What is said: a string, or text parts, which are joined by line breaks."
    )
    message: str | None = Field(None, description="Another name of `content`, of the Chinese-LLaMA-Alpaca server.")
    name: str | None = Field(None, description="The speaker's name, given to the chat template.")
    tool_call_id: str | None = Field(None, description="For role `tool`: given to the chat template.")
    refusal: str | None = Field(
        None, description="The assistant's refusal: given to the chat template, and as the content where there is none."
    )
    tool_calls: Annotated[list[Any], refused([])] = Field(
        default_factory=list, description="Tools that the assistant called."
    )
    function_call: Annotated[Any, refused()] = Field(None, description="Deprecated form of `tool_calls`.")
    audio: Annotated[Any, refused()] = Field(None, description="An earlier answer in audio.")

    @property
    def text(self) -> str | None:
        """What is said; None where the message has nothing of the kind."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        if self.content is not None:
            return self.content
        return self.refusal if self.message is None else self.message


def template_fields(messages: Sequence[Message]) -> list[dict[str, str]]:
    """What a chat template gets to see of each message; raises `InvalidRequest` for one that says nothing."""
    return [_fields(index, message) for index, message in enumerate(messages)]


def _fields(index: int, message: Message) -> dict[str, str]:
    place = f"messages.{index}"
    if message.content is not None and message.message is not None:
        raise InvalidRequest(
            f"Invalid '{place}.message': it is another name of 'content', which is there too.",
            param=f"{place}.message",
            code="invalid_value",
        )
    text = message.text
    if text is None:
        raise InvalidRequest(
            f"Missing required parameter: '{place}.content'.",
            param=f"{place}.content",
            code="missing_required_parameter",
        )
    others = {"name": message.name, "tool_call_id": message.tool_call_id, "refusal": message.refusal}
    return {"role": message.role, "content": text} | {
        name: value for name, value in others.items() if value is not None
    }
