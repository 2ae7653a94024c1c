"""Every request parameter of both endpoints, declared once: type, range, default, meaning, and whether it is honoured.

Names, types and ranges are those of the OpenAI reference (the request types of `openai` 3.54); the ones that are
called extensions come from vLLM, LangPort and transformers. Null means the same as leaving a parameter out. What
is not implemented is marked `Refused`, what changes no answer `Ignored`; a key that is not declared here is
unknown, tolerated and reported (see `arriero.api.body`). `arriero.api.limits` has the operator's limits.

Defaults that are lists or objects are made by factories: of others pydantic makes a deep copy for every request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, WrapValidator, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from arriero.api.messages import Message
from arriero.api.objects import Ignored, JSONObject, Refused, ignored, marks, refused

StopString = Annotated[str, Field(min_length=1)]
TokenIds = Annotated[list[int], Field(fail_fast=True)]
TextsOrTokens = (
    str | Annotated[list[str], Field(fail_fast=True)] | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)]
)
Priority = Annotated[
    int,
    Field(
        ge=-1000,
        le=1000,
        description="Orders the requests that one key waits for: lower goes first. Gets nobody ahead of others. An "
        "extension.",
    ),
]
Deadline = Annotated[float | None, Field(gt=0, le=86_400)]
"""Seconds; what happens after them is for the description of each endpoint's own."""

_TOKEN_ID = re.compile("[0-9]{1,10}")
_MOST_LABELS, _LONGEST_KEY, _LONGEST_LABEL = 16, 64, 512


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

    model: str = Field(description="Id of the model, as `GET /v1/models` lists it. Profile alpaca: any, or none.")
    min_tokens: int = Field(
        0, ge=0, description="Tokens that an answer must have at least: before, nothing ends it. An extension."
    )
    n: int = Field(1, ge=1, description="Answers to each prompt.")

    temperature: float = Field(1.0, ge=0, le=2, description="Randomness of sampling; 0 is greedy.")
    top_p: float = Field(
        1.0, ge=0, le=1, description="Sample from the smallest set of tokens whose probabilities sum to this."
    )
    top_k: int = Field(0, ge=-1, le=2**31 - 1, description="Sample from this many tokens; 0 or -1: all. An extension.")
    min_p: float = Field(
        0.0, ge=0, le=1, description="Leave out tokens less probable than this times the best. An extension."
    )
    typical_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Sample from the tokens whose surprise is nearest to the expected one, up to this mass. An "
        "extension.",
    )
    do_sample: bool = Field(True, description="False: as temperature 0, greedy or beam search. An extension.")
    seed: int | None = Field(
        None, ge=-(2**63), le=2**63 - 1, description="Makes the answer repeatable. Left out: a random one."
    )

    repetition_penalty: float = Field(
        1.0,
        ge=0.01,
        le=100,
        description="Divide the logits of tokens that prompt or answer have already by this, multiply them where they "
        "are negative. An extension.",
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Lower the logits of tokens that the answer has already by this."
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="Lower the logits of tokens by this, once for each time the answer has them."
    )
    no_repeat_ngram_size: int = Field(
        0,
        ge=0,
        le=2**31 - 1,
        description="No sequence of this many tokens occurs twice in prompt and answer; 0: they may. An extension.",
    )
    logit_bias: dict[str, float] = Field(
        default_factory=dict, description="Token id to a number from -100 to 100 that is added to its logit."
    )

    num_beams: int = Field(
        1,
        ge=1,
        description="Search for the most probable answers with this many beams, and return the `n` best; beam-sample "
        "unless `temperature` is 0 or `do_sample` false. Streamed when decided. An extension.",
    )
    length_penalty: float = Field(
        1.0,
        ge=-10,
        le=10,
        description="A beam's score is its sum of log-probabilities over its length to the power of this. An "
        "extension.",
    )
    early_stopping: bool | Literal["never"] = Field(
        False,
        description="When a beam search ends: once it has `num_beams` answers (true), when better ones are improbable "
        '(false), or impossible ("never"). An extension.',
    )

    stop: StopString | Annotated[list[StopString], Field(max_length=4, fail_fast=True)] = Field(
        default_factory=list, description="Up to 4 strings that end the answer; they are no part of it."
    )
    stop_token_ids: TokenIds = Field(default_factory=list, description="Tokens that end the answer too. An extension.")
    ignore_eos: bool = Field(False, description="Go on after an end-of-sequence token. An extension.")
    include_stop_str_in_output: bool = Field(
        False, description="Let the answer end with the stop string that ended it. An extension."
    )
    skip_special_tokens: bool = Field(True, description="False: show special tokens in the text. An extension.")

    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        description="Return the log-probability of each prompt token, and of so many alternatives. Not streamed. An "
        "extension.",
    )
    stream: bool = Field(False, description="Send the answer as server-sent events while it is generated.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream: true`.")
    user: Annotated[str | None, ignored("")] = Field(None, description="Any name for the end user.")

    priority: Priority = 0
    deadline: Deadline = Field(
        None,
        description="Seconds in which the answer must be complete. After them it is given up, waiting or half said, "
        "and the error is 504 `deadline_exceeded`, or that event in a stream. An extension.",
    )

    @field_validator("stream_options")
    @classmethod
    def _check_stream_options(cls, value: StreamOptions | None, others: ValidationInfo) -> StreamOptions | None:
        if value is not None and not others.data.get("stream", True):
            raise PydanticCustomError("stream_options", "it is only allowed when 'stream' is true")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _check_logit_bias(cls, value: dict[str, float]) -> dict[str, float]:
        if not all(_TOKEN_ID.fullmatch(key) for key in value):
            raise PydanticCustomError("logit_bias", "expected token ids as keys")
        if not all(-100 <= bias <= 100 for bias in value.values()):
            raise PydanticCustomError("logit_bias", "expected values >= -100 and <= 100")
        return value

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the request's usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def num_candidates(self) -> int:
        """Answers to generate to each prompt, of which `n` are returned."""
        return self.n

    @property
    def names(self) -> dict[str, str]:
        """What the caller calls some of the things that the engine calls `prompt`, `max_tokens` and `n`."""
        return {}

    @property
    def alternatives(self) -> int | None:
        """Alternatives to report beside each token; None: no log-probabilities at all."""
        return None

    @property
    def prompt_alternatives(self) -> int | None:
        """The same for the prompt."""
        return self.prompt_logprobs


class ChatParameters(GenerationParameters):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(
        min_length=1, description="The conversation so far. Profile alpaca: also a string, what the user says."
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Tokens that an answer may have at most. Left out: as many as fit."
    )
    max_completion_tokens: int | None = Field(None, ge=1, description="The new name of `max_tokens`.")
    add_generation_prompt: bool | None = Field(
        None,
        description="End the prompt with what begins an assistant's message; left out: unless the last message is "
        "continued. An extension.",
    )
    continue_final_message: bool = Field(False, description="The answer goes on with the last message. An extension.")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Variables for the chat template. An extension."
    )
    logprobs: bool = Field(False, description="Return the log-probability of each token.")
    top_logprobs: int = Field(0, ge=0, description="And of so many alternatives to it; only with `logprobs: true`.")

    audio: Annotated[dict[str, Any] | None, refused()] = Field(None, description="Voice and format of audio output.")
    function_call: Annotated[str | dict[str, Any], refused("none", "auto")] = Field(
        "none", description="Deprecated form of `tool_choice`."
    )
    functions: Annotated[list[Any], refused([])] = Field(
        default_factory=list, description="Deprecated form of `tools`."
    )
    metadata: Annotated[dict[str, str], ignored({})] = Field(
        default_factory=dict, description="Up to 16 labels of stored answers, of which there are none."
    )
    modalities: Annotated[list[str], refused(["text"])] = Field(
        default_factory=lambda: ["text"], description="Kinds of output."
    )
    moderation: Annotated[dict[str, Any] | None, refused()] = Field(None, description="Moderate input and output.")
    parallel_tool_calls: Annotated[bool, ignored(True)] = Field(True, description="How to call tools.")
    prediction: Annotated[dict[str, Any] | None, refused()] = Field(None, description="Text expected in the answer.")
    prompt_cache_key: Annotated[str | None, ignored("")] = Field(None, description="Groups requests for caching.")
    prompt_cache_options: Annotated[dict[str, Any], ignored({}, {"mode": "implicit"})] = Field(
        default_factory=dict, description="How prompts are cached."
    )
    prompt_cache_retention: Annotated[Literal["in_memory", "in-memory", "24h"], ignored("in_memory", "in-memory")] = (
        Field("in_memory", description="How long prompts are cached.")
    )
    reasoning_effort: Annotated[str, refused("none")] = Field("none", description="How much to think before answering.")
    response_format: Annotated[dict[str, Any], refused({"type": "text"})] = Field(
        default_factory=lambda: {"type": "text"}, description="Force JSON, or JSON of a schema."
    )
    safety_identifier: Annotated[str | None, ignored("")] = Field(None, description="Identifies the end user.")
    service_tier: Annotated[
        Literal["auto", "default", "flex", "scale", "priority", "fast"], ignored("auto", "default")
    ] = Field("auto", description="Class of service; there is one, and the answer says so: `default`.")
    store: Annotated[bool, refused(False)] = Field(False, description="Keep the answer for later retrieval.")
    tool_choice: Annotated[str | dict[str, Any], refused("none", "auto")] = Field(
        "none", description="Which tool is to be called."
    )
    tools: Annotated[list[Any], refused([])] = Field(default_factory=list, description="Tools that the model may call.")
    verbosity: Annotated[str, refused("medium")] = Field("medium", description="How long answers should be.")
    web_search_options: Annotated[dict[str, Any] | None, refused()] = Field(None, description="Search the web.")

    @field_validator("metadata")
    @classmethod
    def _check_metadata(cls, value: dict[str, str]) -> dict[str, str]:
        if len(value) > _MOST_LABELS:
            raise PydanticCustomError("metadata", f"expected at most {_MOST_LABELS} labels")
        if any(len(key) > _LONGEST_KEY or len(label) > _LONGEST_LABEL for key, label in value.items()):
            raise PydanticCustomError(
                "metadata", f"expected keys of at most {_LONGEST_KEY} characters and labels of {_LONGEST_LABEL}"
            )
        return value

    @property
    def names(self) -> dict[str, str]:
        """What the caller calls some of the things that the engine calls `prompt`, `max_tokens` and `n`."""
        newer = self.max_completion_tokens is not None
        return {"prompt": "messages"} | ({"max_tokens": "max_completion_tokens"} if newer else {})

    @property
    def alternatives(self) -> int | None:
        """Alternatives to report beside each token; None: no log-probabilities at all."""
        return self.top_logprobs if self.logprobs else None


def one_fault(name: str) -> WrapValidator:
    """Reports once a value of `TextsOrTokens` that is of no kind; pydantic would for each kind that it is not."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError(
                "prompt_type",
                f"Invalid type for '{name}': expected a string, an array of strings, an array of token ids, "
                "or an array of arrays of token ids.",
            ) from None

    return WrapValidator(check)


class CompletionParameters(GenerationParameters):
    """The body of `POST /v1/completions`."""

    prompt: Annotated[TextsOrTokens, one_fault("prompt")] = Field(
        "", description="One prompt or several, each as text or as token ids. Left out: a new document."
    )
    suffix: str = Field(
        "", description="What comes after the answer; only for models that were trained to fill in the middle."
    )
    max_tokens: int | None = Field(
        None, ge=0, description="Tokens that an answer may have at most; fewer where the context is full, if left out."
    )
    best_of: int | None = Field(
        None,
        ge=1,
        le=20,
        description="Generate so many answers, return the `n` of the highest mean log-probability; left out: `n`. Not "
        "streamed.",
    )
    echo: bool = Field(False, description="Give the prompt back before the answer.")
    logprobs: int | None = Field(
        None,
        ge=0,
        description="Return the log-probability of each token, also an end of sequence, and of so many alternatives.",
    )

    @property
    def num_candidates(self) -> int:
        """Answers to generate to each prompt, of which `n` are returned."""
        return self.n if self.best_of is None else self.best_of

    @property
    def names(self) -> dict[str, str]:
        """What the caller calls some of the things that the engine calls `prompt`, `max_tokens` and `n`."""
        return {} if self.best_of is None else {"n": "best_of"}

    @property
    def alternatives(self) -> int | None:
        """Alternatives to report beside each token; None: no log-probabilities at all."""
        return self.logprobs

    @property
    def prompt_alternatives(self) -> int | None:
        """The same for the prompt: with `echo` it is part of the answer."""
        wanted = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((each for each in wanted if each is not None), default=None)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One row of the table of parameters, for documentation."""

    name: str
    endpoints: tuple[str, ...]
    field: FieldInfo
    """Type, range, default and meaning."""
    mark: Refused | Ignored | None
    """Not implemented, or without effect, but for these values."""


def table() -> Iterator[Parameter]:
    """Every parameter of the two endpoints once, by name; one that differs between them once for each."""
    shared = GenerationParameters.model_fields.keys()
    rows = [
        Parameter(name, endpoints, field, marks(model).get(name))
        for model, names, endpoints in (
            (GenerationParameters, shared, ("chat/completions", "completions")),
            (ChatParameters, ChatParameters.model_fields.keys() - shared, ("chat/completions",)),
            (CompletionParameters, CompletionParameters.model_fields.keys() - shared, ("completions",)),
        )
        for name, field in model.model_fields.items()
        if name in names
    ]
    yield from sorted(rows, key=lambda row: (row.name, row.endpoints))
