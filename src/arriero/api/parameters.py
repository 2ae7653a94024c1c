"""Every request parameter of both endpoints, declared once: type, range, default, meaning, and whether it is honoured.

Names, types and ranges are those of the OpenAI reference (the request types of `openai` 3.54); `top_k`, `min_p`,
`ignore_eos` and the ones that the table calls extensions come from elsewhere. Null means the same as leaving
a parameter out. What is not implemented is marked `Refused`; a key that is not declared here is unknown,
tolerated and reported (see `arriero.api.body`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError


@dataclass(frozen=True, slots=True)
class Refused:
    """Marks a parameter that is known and not implemented: anything but null and the neutral values is an error."""

    neutral: tuple[Any, ...] = ()
    """Values that ask for nothing, so that passing them on has no meaning."""


def refused(*neutral: Any) -> Refused:
    """A mark for a parameter that is refused unless it is null or one of `neutral`."""
    return Refused(neutral)


@cache
def refusals(model: type[BaseModel]) -> dict[str, Refused]:
    """The fields of `model` that are marked, with their marks."""
    return {
        name: mark for name, field in model.model_fields.items() for mark in field.metadata if isinstance(mark, Refused)
    }


def _describe_refusals(schema: dict[str, Any], model: type[BaseModel]) -> None:
    for name, mark in refusals(model).items():
        values = ", ".join(json.dumps(value) for value in (None, *mark.neutral))
        schema["properties"][name]["description"] += f" Refused: only {values} pass."


class JSONObject(BaseModel):
    """An object of a request: strict about types, null is absence, unknown keys are kept to be reported."""

    model_config = ConfigDict(
        strict=True,
        extra="allow",
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra=_describe_refusals,
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        return {key: each for key, each in value.items() if each is not None} if isinstance(value, dict) else value


StopString = Annotated[str, Field(min_length=1)]
TokenIds = Annotated[list[int], Field(fail_fast=True)]


class StreamOptions(JSONObject):
    """Options of a stream."""

    include_usage: bool = Field(
        False, description="Send the usage of the whole request in one more event before the stream's end."
    )
    include_obfuscation: Annotated[bool, refused(False)] = Field(
        False, description="Pad the events with random characters to hide their lengths."
    )


class GenerationParameters(JSONObject):
    """What chat and text completions share."""

    model: str = Field(description="Id of the model, as `GET /v1/models` lists it.")
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens that an answer may have at most. Left out: what the context has left, "
        "for text completions no more than 4096.",
    )
    temperature: float = Field(1.0, ge=0, le=2, description="Randomness of sampling; 0 is greedy.")
    top_p: float = Field(
        1.0, ge=0, le=1, description="Sample from the smallest set of tokens whose probabilities sum to this."
    )
    top_k: int = Field(0, ge=-1, le=2**31 - 1, description="Sample from this many tokens; 0 or -1: all. An extension.")
    min_p: float = Field(
        0.0, ge=0, le=1, description="Leave out tokens less probable than this times the best. An extension."
    )
    seed: int | None = Field(
        None, ge=-(2**63), le=2**63 - 1, description="Makes the answer repeatable. Left out: a random one."
    )
    stop: StopString | Annotated[list[StopString], Field(max_length=4, fail_fast=True)] = Field(
        [], description="Up to 4 strings that end the answer; they are no part of it."
    )
    n: int = Field(1, ge=1, le=128, description="Answers to each prompt.")
    stream: bool = Field(False, description="Send the answer as server-sent events while it is generated.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream: true`.")
    ignore_eos: bool = Field(False, description="Go on after an end-of-sequence token. An extension.")
    user: str | None = Field(None, description="Any name for the end user; it has no effect on the answer.")

    frequency_penalty: Annotated[float, refused(0)] = Field(
        0.0, ge=-2, le=2, description="Lower the chance of tokens by how often the answer has them already."
    )
    presence_penalty: Annotated[float, refused(0)] = Field(
        0.0, ge=-2, le=2, description="Lower the chance of tokens that the answer has already."
    )
    logit_bias: Annotated[dict[str, float], refused({})] = Field(
        {}, description="Token id to a number from -100 to 100 that is added to its logit."
    )
    min_tokens: Annotated[int, refused(0)] = Field(
        0, ge=0, description="Tokens that an answer must have at least. An extension."
    )
    repetition_penalty: Annotated[float, refused(1)] = Field(
        1.0, gt=0, description="Divide the logits of tokens that are there already. An extension."
    )
    num_beams: Annotated[int, refused(1)] = Field(1, ge=1, description="Beams of a beam search. An extension.")
    do_sample: Annotated[bool, refused(True)] = Field(True, description="False: greedy or beam search. An extension.")

    @field_validator("stream_options")
    @classmethod
    def _check_stream_options(cls, value: StreamOptions | None, others: ValidationInfo) -> StreamOptions | None:
        if value is not None and not others.data.get("stream", True):
            raise PydanticCustomError("stream_options", "it is only allowed when 'stream' is true")
        return value

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the request's usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(JSONObject):
    """A piece of a message's content; only text is understood."""

    type: Literal["text"] = Field(description="Kind of the part.")
    text: str = Field(description="The text.")
    prompt_cache_breakpoint: Annotated[Any, refused()] = Field(None, description="Where a reusable prefix ends.")


class Message(JSONObject):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description="Who says it.")
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = Field(
        None, description="What is said: a string, or text parts, which are joined by line breaks."
    )
    name: str | None = Field(None, description="The speaker's name, given to the chat template.")
    tool_call_id: str | None = Field(None, description="For role `tool`: given to the chat template.")
    tool_calls: Annotated[list[Any], refused([])] = Field([], description="Tools that the assistant called.")
    function_call: Annotated[Any, refused()] = Field(None, description="Deprecated form of `tool_calls`.")
    refusal: Annotated[str | None, refused("")] = Field(None, description="The assistant's refusal.")
    audio: Annotated[Any, refused()] = Field(None, description="An earlier answer in audio.")


class ChatParameters(GenerationParameters):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(
        min_length=1, description="The conversation so far."
    )
    max_completion_tokens: int | None = Field(None, ge=1, description="The new name of `max_tokens`.")

    audio: Annotated[dict[str, Any] | None, refused()] = Field(None, description="Voice and format of audio output.")
    function_call: Annotated[str | dict[str, Any], refused("none", "auto")] = Field(
        "none", description="Deprecated form of `tool_choice`."
    )
    functions: Annotated[list[Any], refused([])] = Field([], description="Deprecated form of `tools`.")
    logprobs: Annotated[bool, refused(False)] = Field(False, description="Return log probabilities.")
    metadata: Annotated[dict[str, Any], refused({})] = Field({}, description="Labels for stored answers.")
    modalities: Annotated[list[str], refused(["text"])] = Field(["text"], description="Kinds of output.")
    moderation: Annotated[dict[str, Any] | None, refused()] = Field(None, description="Moderate input and output.")
    parallel_tool_calls: bool = Field(True, description="Without tools, which are refused, it asks for nothing.")
    prediction: Annotated[dict[str, Any] | None, refused()] = Field(None, description="Text expected in the answer.")
    prompt_cache_key: Annotated[str | None, refused("")] = Field(None, description="Groups requests for caching.")
    prompt_cache_options: Annotated[dict[str, Any], refused({}, {"mode": "implicit"})] = Field(
        {}, description="How prompts are cached."
    )
    prompt_cache_retention: Annotated[str, refused("in_memory")] = Field(
        "in_memory", description="How long prompts are cached."
    )
    reasoning_effort: Annotated[str, refused("none")] = Field("none", description="How much to think before answering.")
    response_format: Annotated[dict[str, Any], refused({"type": "text"})] = Field(
        {"type": "text"}, description="Force JSON, or JSON of a schema."
    )
    safety_identifier: Annotated[str | None, refused("")] = Field(None, description="Identifies the end user.")
    service_tier: Annotated[str, refused("auto", "default")] = Field("auto", description="Class of service.")
    store: Annotated[bool, refused(False)] = Field(False, description="Keep the answer for later retrieval.")
    tool_choice: Annotated[str | dict[str, Any], refused("none", "auto")] = Field(
        "none", description="Which tool is to be called."
    )
    tools: Annotated[list[Any], refused([])] = Field([], description="Tools that the model may call.")
    top_logprobs: Annotated[int, refused(0)] = Field(0, ge=0, le=20, description="Alternatives at each position.")
    verbosity: Annotated[str, refused("medium")] = Field("medium", description="How long answers should be.")
    web_search_options: Annotated[dict[str, Any] | None, refused()] = Field(None, description="Search the web.")


def _check_prompt(value: Any, handler: Callable[[Any], Any]) -> Any:
    try:
        return handler(value)
    except ValidationError:  # pydantic would report every kind of prompt that it is not
        raise PydanticCustomError(
            "prompt_type",
            "Invalid type for 'prompt': expected a string, an array of strings, an array of token ids, "
            "or an array of arrays of token ids.",
        ) from None


class CompletionParameters(GenerationParameters):
    """The body of `POST /v1/completions`."""

    prompt: Annotated[
        str | Annotated[list[str], Field(fail_fast=True)] | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)],
        WrapValidator(_check_prompt),
    ] = Field("", description="One prompt or several, each as text or as token ids. Left out: a new document.")

    best_of: Annotated[int, refused(1)] = Field(1, ge=1, le=20, description="Answers of which the best `n` are kept.")
    echo: Annotated[bool, refused(False)] = Field(False, description="Give the prompt back before the answer.")
    logprobs: Annotated[int | None, refused()] = Field(None, ge=0, le=5, description="Return log probabilities.")
    suffix: Annotated[str, refused("")] = Field("", description="What comes after the answer.")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One row of the table of parameters, for documentation."""

    name: str
    endpoints: tuple[str, ...]
    field: FieldInfo
    """Type, range, default and meaning."""
    refusal: Refused | None
    """Not implemented, but for these values."""


def table() -> Iterator[Parameter]:
    """Every parameter of the two endpoints once, by name; one that differs between them once for each."""
    shared = GenerationParameters.model_fields.keys()
    rows = [
        Parameter(name, endpoints, field, refusals(model).get(name))
        for model, names, endpoints in (
            (GenerationParameters, shared, ("chat/completions", "completions")),
            (ChatParameters, ChatParameters.model_fields.keys() - shared, ("chat/completions",)),
            (CompletionParameters, CompletionParameters.model_fields.keys() - shared, ("completions",)),
        )
        for name, field in model.model_fields.items()
        if name in names
    ]
    yield from sorted(rows, key=lambda row: (row.name, row.endpoints))
