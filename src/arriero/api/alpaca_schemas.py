"""What answers look like in the profile alpaca, where it differs from `arriero.api.schemas`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from arriero.api.schemas import ChatLogprobs, PromptLogprobs, TextLogprobs, Usage


class AlpacaMessage(BaseModel):
    """A message of the conversation, or the answer to it."""

    role: str
    content: str


class AlpacaChatChoice(BaseModel):
    """A message of the conversation, in its order; the answers come last."""

    index: int
    message: AlpacaMessage
    logprobs: ChatLogprobs | None = Field(None, description="Of an answer; where asked for.")


class AlpacaChatCompletion(BaseModel):
    """The answer of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int = Field(description="Seconds since the epoch.")
    model: str
    choices: list[AlpacaChatChoice]
    prompt_logprobs: PromptLogprobs | None = Field(None, description="By token id; where asked for.")


class AlpacaDelta(BaseModel):
    """What a chunk adds to the message; the first one of a choice has the role."""

    role: Literal["assistant"] | None = None
    content: str


class AlpacaChunkChoice(BaseModel):
    """What a chunk adds to a choice."""

    index: int = Field(description="Counts the messages of the conversation, too.")
    delta: AlpacaDelta
    logprobs: ChatLogprobs | None = Field(None, description="Where asked for.")


class AlpacaChatCompletionChunk(BaseModel):
    """One event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[AlpacaChunkChoice] = Field(description="One choice; none in the event that has the usage.")
    usage: Usage | None = Field(None, description="With `include_usage`: null but in the last event.")


class AlpacaCompletionChoice(BaseModel):
    """One continuation; that of prompt p and answer k has index p * n + k."""

    index: int
    text: str
    logprobs: TextLogprobs | None = Field(None, description="Where asked for.")
    prompt_logprobs: PromptLogprobs | None = Field(None, description="By token id; where asked for.")


class AlpacaCompletion(BaseModel):
    """The answer of `POST /v1/completions`, and one event of it when streamed."""

    id: str
    object: Literal["text_completion"]
    created: int = Field(description="Seconds since the epoch.")
    model: str
    choices: list[AlpacaCompletionChoice]
    usage: Usage | None = Field(None, description="In a stream: with `include_usage`, null but in the last event.")
