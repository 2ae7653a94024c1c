"""What the endpoints answer, for the OpenAPI page and the tests; answers are written as JSON without these.

Names and types are those of the OpenAI reference.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

FinishReason = Literal["stop", "length"]


class PromptTokensDetails(BaseModel):
    """Parts of `prompt_tokens`."""

    cached_tokens: int = Field(description="Those that needed no computation, because their prefix was at hand.")
    audio_tokens: Literal[0]


class CompletionTokensDetails(BaseModel):
    """Parts of `completion_tokens`."""

    reasoning_tokens: Literal[0]
    audio_tokens: Literal[0]
    accepted_prediction_tokens: Literal[0]
    rejected_prediction_tokens: Literal[0]


class Usage(BaseModel):
    """Tokens that a request took, all its choices together."""

    prompt_tokens: int
    completion_tokens: int = Field(description="Tokens generated, those that ended an answer included.")
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class AnswerMessage(BaseModel):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str
    refusal: None
    annotations: list[Any]


class TopLogprob(BaseModel):
    """How probable a token was, by the model's own distribution."""

    token: str
    logprob: float = Field(description="Natural logarithm of its probability; -9999 stands for anything less.")
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The same of a token of the answer, and of others in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a message."""

    content: list[TokenLogprob]
    refusal: None


class RankedLogprob(BaseModel):
    """How probable a token of the prompt was."""

    logprob: float
    rank: int | None = Field(description="1 for the most probable; null below the alternatives asked for.")
    decoded_token: str


PromptLogprobs = list[dict[str, RankedLogprob] | None]


class ChatChoice(BaseModel):
    """One of the `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The answer of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int = Field(description="Seconds since the epoch.")
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: Literal["default"]
    system_fingerprint: str
    prompt_logprobs: PromptLogprobs | None = Field(None, description="By token id; where asked for.")


class ChoiceDelta(BaseModel):
    """What a chunk adds to the message; the first one of a choice has the role."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None


class ChatChunkChoice(BaseModel):
    """What a chunk adds to a choice."""

    index: int
    delta: ChoiceDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(BaseModel):
    """One event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice] = Field(description="One choice; none in the event that has the usage.")
    usage: Usage | None = Field(None, description="With `include_usage`: null but in the last event.")
    service_tier: Literal["default"]
    system_fingerprint: str


class TextLogprobs(BaseModel):
    """Log-probabilities of a text; one element a token."""

    tokens: list[str]
    token_logprobs: list[float | None] = Field(description="Null for a prompt's first token, which nothing precedes.")
    top_logprobs: list[dict[str, float] | None] = Field(description="Alternatives by text, and the token itself.")
    text_offset: list[int] = Field(description="Where a token begins in prompt and answer together, in characters.")


class CompletionChoice(BaseModel):
    """One continuation; that of prompt p and answer k has index p * n + k."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None = Field(description="Null only in a stream, until the choice is complete.")
    prompt_logprobs: PromptLogprobs | None = Field(None, description="By token id; where asked for.")


class Completion(BaseModel):
    """The answer of `POST /v1/completions`, and one event of it when streamed."""

    id: str
    object: Literal["text_completion"]
    created: int = Field(description="Seconds since the epoch.")
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = Field(None, description="In a stream: with `include_usage`, null but in the last event.")
    system_fingerprint: str


ModelState = Literal["unloaded", "loading", "ready", "restarting", "unloading", "failed"]


class Model(BaseModel):
    """A model that this server answers for."""

    id: str
    object: Literal["model"]
    created: int = Field(description="Seconds since the epoch.")
    owned_by: str
    parent: str | None = Field(description="The base model of an adapter, or the model that an alias stands for.")
    state: ModelState
    context_length: int = Field(
        description="Tokens of a prompt and its answer together; of an encoder-decoder, its answer's."
    )
    capabilities: list[str] = Field(description="What it can be asked for.")
    supported_parameters: dict[str, list[str]] = Field(description="By endpoint: parameters that have an effect.")
    card: dict[str, str | int | bool] = Field(description="What is particular to this server's copy of the model.")


class UnseenModel(BaseModel):
    """A model that was not loaded yet since the server was started."""

    id: str
    object: Literal["model"]
    created: int = Field(description="When the server was started, in seconds since the epoch.")
    owned_by: str
    parent: str | None = Field(description="The base model of an adapter, or the model that an alias stands for.")
    state: ModelState


class RemoteModel(BaseModel):
    """A model that this server passes requests on for."""

    id: str
    object: Literal["model"]
    created: int = Field(description="When this server was started, in seconds since the epoch.")
    owned_by: Literal["upstream"]


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[Model | UnseenModel | RemoteModel]


class Residence(BaseModel):
    """Whether a model is in memory."""

    id: str
    state: ModelState
    bytes: int = Field(description="What it takes, or took, or is thought to take; 0: not known.")
    idle_seconds: float | None = Field(description="Since somebody asked for it; null: nobody has.")
    ttl: float = Field(description="Seconds without requests after which it is unloaded; 0: never.")
    error: str | None = Field(description="Why it could not be loaded.")


class ResidenceList(BaseModel):
    """All models that this server computes itself."""

    object: Literal["list"]
    data: list[Residence]


class EncodingUsage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    """The vector of one input."""

    object: Literal["embedding"]
    embedding: list[float] | str = Field(description="Numbers, or base64 where asked for.")
    index: int


class Embeddings(BaseModel):
    """The answer of `POST /v1/embeddings`."""

    object: Literal["list"]
    data: list[Embedding] = Field(description="In the order of the inputs.")
    model: str
    usage: EncodingUsage | None = Field(None, description="Not in the profile alpaca.")


class Document(BaseModel):
    """A document that was compared."""

    text: str


class RankedDocument(BaseModel):
    """How relevant a document is."""

    index: int = Field(description="Its place in the request.")
    relevance_score: float = Field(description="Of a classification head: mostly 0 to 1; of vectors: their cosine.")
    document: Document | None = Field(None, description="Where asked for.")


class Reranking(BaseModel):
    """The answer of `POST /v1/rerank`."""

    id: str
    object: Literal["list"]
    model: str
    results: list[RankedDocument] = Field(description="The most relevant first.")
    usage: EncodingUsage


class Score(BaseModel):
    """How near the texts of a pair are."""

    index: int
    object: Literal["score"]
    score: float


class Scores(BaseModel):
    """The answer of `POST /v1/score`."""

    id: str
    object: Literal["list"]
    created: int = Field(description="Seconds since the epoch.")
    model: str
    data: list[Score]
    usage: EncodingUsage


class Tokenized(BaseModel):
    """A text in tokens."""

    count: int
    max_model_len: int = Field(
        description="Tokens of a prompt and its answer together; of an encoder-decoder, its answer's."
    )
    tokens: list[int]
    token_strs: list[str] | None = Field(description="What each token reads, where asked for.")


class Detokenized(BaseModel):
    """Tokens in text."""

    prompt: str


class Health(BaseModel):
    """How the server is."""

    status: Literal["ok", "failed"]
    models: dict[str, dict[str, int] | None] = Field(
        description="By model: counts of its engine since the start; null for an engine that failed."
    )


class ErrorDetails(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None = Field(description="The request's parameter at fault, as a dotted path.")
    code: str | None


class Error(BaseModel):
    """Every answer that is no success."""

    error: ErrorDetails
