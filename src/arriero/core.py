"""The vocabulary that the rooms share: what is asked of an engine, what it answers, and the seams.

Tokens go in and tokens come out: below `arriero.text` nobody sees text, above it nobody sees tokens.
Everything that crosses the `Engine` seam can be pickled, so an engine may live in another process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:  # it takes long to import, and commands that compute nothing import this module too
    import numpy as np
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length"]


@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class Sampling:
    """How the next token is chosen from the logits, for every choice of one request.

    Nobody changes one, nor a request. They are not frozen, see `Token`.

    Processors apply first: repetition_penalty, no_repeat_ngram_size, presence_penalty and frequency_penalty,
    logit_bias, min_tokens. Then the filters, in the order temperature, top_k, top_p, min_p, typical_p, as in
    transformers' `generate`.
    """

    temperature: float = 1.0
    """0 is greedy: the largest logit, the smallest id among equals; the filters then have no effect."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most probable tokens whose probabilities sum to at least this."""
    min_p: float = 0.0
    """Drop tokens less probable than this times the most probable one."""
    typical_p: float = 1.0
    """Keep the tokens whose surprise is nearest to the expected one, up to this mass (Meister et al. 2022)."""
    repetition_penalty: float = 1.0
    """Logits of tokens in prompt or answer are divided by this where positive, multiplied where negative (Keskar et
    al. 2019)."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that the answer has (OpenAI; the prompt does not count)."""
    frequency_penalty: float = 0.0
    """Taken from the logits of tokens once for each time the answer has them (OpenAI; the prompt does not count)."""
    no_repeat_ngram_size: int = 0
    """No sequence of this many tokens occurs twice in prompt and answer together; 0 is off."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit), each id once."""
    seed: int = 0
    """With the choice's index and the token's position it fixes every draw; see `arriero.engine.sampling`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beams:
    """Search for the most probable answers instead of drawing one; beam-sample where the temperature is not 0.

    The same search as transformers' `generate` with `num_beams`: processors apply to log-probabilities.
    """

    num_beams: int
    length_penalty: float = 1.0
    """A finished beam's score is its sum of log-probabilities over its length to the power of this."""
    early_stopping: bool | Literal["never"] = False
    """When to stop; see transformers' `GenerationConfig`."""


@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class GenerationRequest:
    """One request: every prompt, times `num_choices` independent choices each.

    Choice `k` of prompt `p` has index `p * num_choices + k` in the events.
    """

    id: str
    prompts: tuple[tuple[int, ...], ...]
    max_tokens: int
    """Tokens a choice may have at most; each prompt plus this must fit the runner's context, or with an
    encoder-decoder this alone. 0 only scores prompts."""
    likely_tokens: int | None = None
    """Tokens a choice is likely to have at most, where `max_tokens` is only what there is room for: the engine sets
    aside no more at first, and a choice that goes on may have to wait for room. None: `max_tokens`. Not for beams."""
    min_tokens: int = 0
    """Tokens a choice has at least: before that no end token is drawn and no stop string ends it."""
    num_choices: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    end_token_ids: frozenset[int] = frozenset()
    """A choice that samples one of these is finished; empty when end-of-sequence is to be ignored."""
    stop_strings: tuple[str, ...] = ()
    """A specification only: the engine watches for them through the `Constraint` it is given."""
    skip_special_tokens: bool = True
    """Whether stop strings are looked for in the text without special tokens; a specification too."""
    beams: Beams | None = None
    """Each prompt gets a beam search of its own; its `num_choices` best beams are the choices, best first. Their
    events come when they are decided."""
    logprobs: int | None = None
    """How many of the most probable tokens to report beside each drawn one; None reports nothing."""
    prompt_logprobs: int | None = None
    """The same for every prompt token, in one `PromptScored` a prompt; not for encoder-decoders, which score none."""
    adapter: int = 0
    """Which of the runner's adapters answers; 0 is the base model."""
    streamed: bool = True
    """Whether somebody reads along. Else what happens after the first events may be told when all is over."""
    caller: str = ""
    """Who asks: the engine's callers take turns."""
    weight: float = 1.0
    """The caller's share, in relation to others'."""
    priority: int = 0
    """Orders what one caller waits for; lower goes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingRequest:
    """Inputs to be turned into one vector each: an embedding, or the scores of a classification head."""

    id: str
    inputs: tuple[tuple[int, ...], ...]
    """Token ids, special tokens included."""
    first_segments: tuple[int, ...] = ()
    """How many tokens of each input belong to its first segment, for models that read pairs; empty: all of them."""
    adapter: int = 0
    """Which of the runner's adapters answers; 0 is the base model."""
    caller: str = ""
    """Who asks: the engine's callers take turns."""
    weight: float = 1.0
    """The caller's share, in relation to others'."""
    priority: int = 0
    """Orders what one caller waits for; lower goes first."""


@dataclass(frozen=True, slots=True)
class Logprob:
    """Natural log-softmax of the model's own logits: before processors, temperature and filters."""

    value: float
    """Of the token itself."""
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability) of the most probable tokens, best first."""


@dataclass(frozen=True, slots=True)
class PromptScored:
    """How probable the model finds a prompt; comes before any other event of its choices."""

    prompt: int
    """Index into the request's prompts."""
    logprobs: tuple[Logprob | None, ...]
    """One for each prompt token; None for the first, which nothing precedes."""


@dataclass(slots=True)
class Token:
    """A choice has one more token. The token that ends a choice (end of sequence) gets no such event.

    Nobody changes one. It is not frozen because there are so many: that would take thrice the time to make one.
    """

    index: int
    id: int
    logprob: Logprob | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """A choice is complete; nothing follows for this index.

    `num_tokens` counts what was sampled, the ending token included (usage's completion_tokens).
    """

    index: int
    reason: FinishReason
    num_tokens: int
    cached_tokens: int = 0
    """Prompt tokens of this choice that needed no computation because a prefix was at hand."""
    ending: Token | None = None
    """The token that ended the choice, where it has no event of its own (end of sequence)."""
    queue_seconds: float = field(default=0.0, compare=False)
    """For how long the request waited until the engine began with it."""


Event = PromptScored | Token | Finished


@dataclass(frozen=True, slots=True)
class Encoded:
    """What comes of an encoding request."""

    vectors: NDArray[np.float32]
    """One an input, float32 [inputs, width], in their order."""
    queue_seconds: float = field(default=0.0, compare=False)
    """For how long the request waited until the engine began with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot of an engine, for health, metrics and tests. Counts are since start."""

    waiting: int = 0
    """Requests queued."""
    running: int = 0
    """Sequences (choices) that hold a slot."""
    num_slots: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    token_budget: int = 0
    """Tokens whose keys and values the running answers may hold together."""
    reserved_tokens: int = 0
    """Those of them that are set aside for admitted requests."""
    kept_tokens: int = 0
    """Prompt tokens of ended requests that are kept for prompts that begin like theirs."""
    restarts: int = 0
    """How often the engine died and was started again."""


EngineState = Literal["starting", "ready", "restarting", "failed", "closed"]
"""`restarting`: it died and will be back, requests wait for it; `failed`: it died for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, and for what they may ask."""

    id: str = ""
    """The public id of a key; empty: nobody in particular, where no keys are asked for."""
    models: tuple[str, ...] = ("*",)
    """Names of models, or patterns with `*` and `?`."""
    endpoints: tuple[str, ...] = ("*",)
    """Paths without `/v1/`, or patterns."""
    admin: bool = True
    """Whether they may look after the server and see what others use."""
    weight: float = 1.0
    """Their share of a busy engine, in relation to others."""

    def may_use(self, model: str) -> bool:
        """Whether the model of that name is theirs to ask."""
        return "*" in self.models or any(fnmatchcase(model, pattern) for pattern in self.models)


@dataclass(slots=True, kw_only=True)
class Meter:
    """What one request has used so far, written by who answers it and read by who counts: usage, limits, metrics.

    It is right at any moment, so a request that is broken off has used what its meter says then.
    """

    endpoint: str = ""
    """Path of the route, such as `/v1/chat/completions`, with names where values stand; empty: there is none."""
    model: str = ""
    """Name of the model that answers, one of the server's own; empty: none was asked, or none has that name."""
    prompt_tokens: int = 0
    """Tokens that an engine has taken to read; 0 again when it refuses them."""
    cached_tokens: int = 0
    """Those of them that needed no computation; known of a choice when it is complete."""
    completion_tokens: int = 0
    """Tokens that were sampled, ending ones included."""
    queued_at: float | None = None
    """When an engine was asked, by `time.perf_counter`."""
    queue_seconds: float | None = None
    """How long the request waited there; known when an answer is complete."""
    first_token_at: float | None = None
    """When the first of them came, by `time.perf_counter`."""
    error: str | None = None
    """Name of the class of what went wrong, before the answer or amid it; None: nothing did."""


class Engine(Protocol):
    """Answers requests, any number at once. The API cannot tell one engine from another."""

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together; of an encoder-decoder, the answer alone."""
        ...

    @property
    def source_context(self) -> int:
        """Tokens that an encoder-decoder's prompt may have; 0: the model is a decoder."""
        ...

    @property
    def state(self) -> EngineState:
        """How it is, as of now; cheap."""
        ...

    async def start(self) -> None:
        """Make ready; raises `ModelLoadError`."""
        ...

    async def close(self, grace: float = 0.0) -> None:
        """Take no more requests, let running ones finish for `grace` seconds, then end them with `EngineClosed`."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncIterator[list[Event]]:
        """Everything that happened to the request since the last look, until all choices are `Finished`.

        The lists are never empty and tokens of one index are in order. The first `__anext__` admits the
        request. Closing the iterator (`aclose`, or cancelling the task that waits on it) aborts the request
        and frees its slots within one step.

        Raises:
            ContextOverflow: a prompt plus `max_tokens` exceeds the context, or the request can never be admitted.
            Overloaded: the queue is full.
            EngineDied: the engine failed, or was closed (`EngineClosed`); raised mid-iteration.
        """
        ...

    async def encode(self, request: EncodingRequest) -> Encoded:
        """One vector an input; cancelling the task drops what is left of it.

        A decoder's vectors are the means of its last hidden states over an input's tokens, not normalised.

        Raises:
            InvalidRequest: the model has no vectors to give, or a token id is out of range.
            ContextOverflow: an input is longer than the context.
            Overloaded, EngineDied: as `generate`.
        """
        ...

    def stats(self) -> EngineStats:
        """Counts as of now; cheap."""
        ...

    def memory(self) -> int | None:
        """Bytes of main memory that it alone takes; None where nobody can tell, as beside others. May block."""
        ...


class Constraint(Protocol):
    """Watches over one choice: what it may say next, and when it has said enough.

    The engine's model thread calls it; it never sees logits, and the engine never sees text.
    """

    def accept(self, token: int) -> bool:
        """Take the next token; True when the choice is finished with it (a stop string is complete)."""
        ...

    def copy(self) -> Constraint:
        """An independent watcher in the same state, for a choice that forks."""
        ...


ConstraintFactory = Callable[[GenerationRequest], Constraint | None]
"""Compiles a request's specifications, one constraint a choice; None when nothing needs watching."""
