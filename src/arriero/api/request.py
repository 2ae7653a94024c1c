"""From checked parameters and encoded prompts to the one `GenerationRequest` that the engine is asked."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from arriero.api.limits import Limits, above
from arriero.api.parameters import ChatParameters, CompletionParameters, GenerationParameters
from arriero.core import Beams, Caller, GenerationRequest, Sampling
from arriero.errors import ContextOverflow, InvalidRequest
from arriero.models.tokenizers.tokenizer import Tokenizer
from arriero.pool import ServedModel

_GREEDY = 0.0
LIKELY_TOKENS = 512
"""What is set aside at once for an answer whose length nobody limited."""


def check(parameters: GenerationParameters, limits: Limits) -> None:
    """Raise `InvalidRequest` for values past the operator's limits, and for parameters that exclude each other."""
    names = ("min_tokens", "n", "num_beams", "prompt_logprobs")
    limits.check(**{name: getattr(parameters, name) for name in names})
    if parameters.prompt_logprobs is not None and parameters.stream:
        raise excluded("prompt_logprobs", "stream")
    if parameters.num_beams > 1 and parameters.n > parameters.num_beams:
        raise above("n", parameters.num_beams)
    if isinstance(parameters, ChatParameters):
        _check_chat(parameters, limits)
    elif isinstance(parameters, CompletionParameters):
        _check_completion(parameters, limits)


def _check_chat(parameters: ChatParameters, limits: Limits) -> None:
    limits.check(
        max_tokens=parameters.max_tokens,
        max_completion_tokens=parameters.max_completion_tokens,
        top_logprobs=parameters.top_logprobs,
    )
    if parameters.max_tokens is not None and parameters.max_completion_tokens is not None:
        raise excluded("max_tokens", "max_completion_tokens")
    if parameters.top_logprobs and not parameters.logprobs:
        raise InvalidRequest(
            "Invalid 'top_logprobs': it needs 'logprobs' to be true.", param="top_logprobs", code="invalid_value"
        )
    check_conversation(parameters)


class Conversation(Protocol):
    """How messages become a prompt, as far as the caller says."""

    @property
    def add_generation_prompt(self) -> bool | None:
        """Whether to end with what begins an answer; None: unless the last message is continued."""

    @property
    def continue_final_message(self) -> bool:
        """Whether to end inside the last message."""

    @property
    def chat_template_kwargs(self) -> dict[str, Any]:
        """Variables of the template."""


def check_conversation(parameters: Conversation) -> None:
    """Raise `InvalidRequest` for what excludes each other."""
    if parameters.continue_final_message and parameters.add_generation_prompt:
        raise excluded("continue_final_message", "add_generation_prompt")
    for name in ("messages", "add_generation_prompt", "continue_final_message", "self"):
        if name in parameters.chat_template_kwargs:
            raise InvalidRequest(
                f"Invalid 'chat_template_kwargs': '{name}' is not the template's own.",
                param="chat_template_kwargs",
                code="invalid_value",
            )


def _check_completion(parameters: CompletionParameters, limits: Limits) -> None:
    limits.check(max_tokens=parameters.max_tokens, best_of=parameters.best_of, logprobs=parameters.logprobs)
    if parameters.suffix and parameters.echo:
        raise excluded("echo", "suffix")
    if parameters.best_of is None or parameters.best_of == parameters.n == 1:
        return
    if parameters.best_of < parameters.n:
        raise InvalidRequest(
            f"Invalid 'best_of': expected a value >= {parameters.n}, which is 'n'.",
            param="best_of",
            code="integer_below_min_value",
        )
    if parameters.stream:
        raise excluded("best_of", "stream")
    if parameters.num_beams > 1:
        raise excluded("best_of", "num_beams")


def excluded(name: str, other: str) -> InvalidRequest:
    """The error for two parameters that cannot go together."""
    return InvalidRequest(
        f"Setting '{name}' and '{other}' at the same time is not supported.", param=name, code="invalid_value"
    )


def without_effect(parameters: GenerationParameters) -> list[str]:
    """Parameters that were given and mean something only beside others that were not."""
    if parameters.num_beams > 1:
        return []
    return [name for name in ("length_penalty", "early_stopping") if name in parameters.model_fields_set]


def generation_request(
    model: ServedModel,
    parameters: GenerationParameters,
    prompts: Sequence[Sequence[int]],
    *,
    id: str,
    max_tokens: int | None,
    default_max_tokens: int | None,
    limits: Limits,
    param: str,
    caller: Caller,
    end_token_ids: frozenset[int] = frozenset(),
) -> GenerationRequest:
    """What the engine is asked; `max_tokens` None means all that the context has left, or `default_max_tokens`.

    `param` names where the prompts came from; `end_token_ids` end an answer besides the model's own. Raises
    `ContextOverflow` in the reference's words, `InvalidRequest` for token ids that the model does not have.
    """
    limits.check_prompts(prompts, param)
    tokenizer = model.tokenizer
    likely_tokens = LIKELY_TOKENS if max_tokens is None else None
    max_tokens = _room(model, parameters, max(map(len, prompts)), max_tokens, default_max_tokens, limits, param)
    if parameters.min_tokens > max_tokens:
        raise above("min_tokens", max_tokens)
    ends = frozenset() if parameters.ignore_eos else tokenizer.end_token_ids | end_token_ids
    return GenerationRequest(
        adapter=model.adapter,
        streamed=parameters.stream,
        id=id,
        prompts=tuple(map(tuple, prompts)),
        max_tokens=max_tokens,
        likely_tokens=likely_tokens,
        min_tokens=parameters.min_tokens,
        num_choices=parameters.num_candidates,
        sampling=_sampling(parameters, tokenizer),
        beams=_beams(parameters),
        end_token_ids=ends | known_ids("stop_token_ids", parameters.stop_token_ids, tokenizer),
        stop_strings=(parameters.stop,) if isinstance(parameters.stop, str) else tuple(parameters.stop),
        skip_special_tokens=parameters.skip_special_tokens,
        logprobs=0
        if parameters.num_candidates > parameters.n and parameters.alternatives is None
        else parameters.alternatives,
        prompt_logprobs=parameters.prompt_alternatives,
        caller=caller.id,
        weight=caller.weight,
        priority=parameters.priority,
    )


def _room(
    model: ServedModel,
    parameters: GenerationParameters,
    longest: int,
    max_tokens: int | None,
    default_max_tokens: int | None,
    limits: Limits,
    param: str,
) -> int:
    """The tokens that an answer may have; raises `ContextOverflow` where they or the prompt are too many."""
    context = model.engine.context
    if model.engine.source_context:
        _check_source(model, parameters, longest, param)
        longest = 0  # the prompt takes nothing of the answer's context
    if longest + (1 if max_tokens is None else max_tokens) > context:
        raise _overflow(context, longest, max_tokens, param)
    if max_tokens is None:
        return min(context - longest, default_max_tokens or context, limits.max_tokens or context)
    return max_tokens


NOT_FOR_ENCODER_DECODERS = ("echo", "suffix", "prompt_logprobs", "continue_final_message")
"""Parameters that take the prompt for the beginning of the text that the model writes."""


def _check_source(model: ServedModel, parameters: GenerationParameters, longest: int, param: str) -> None:
    """Refuse what an encoder-decoder cannot do, and a prompt that is longer than its encoder reads."""
    for name in NOT_FOR_ENCODER_DECODERS:
        if getattr(parameters, name, None) not in (None, False, ""):
            raise InvalidRequest(
                f"Unsupported parameter: '{name}'; the model '{model.name}' is an encoder-decoder, whose prompt is "
                "read apart and is not the beginning of what it writes.",
                param=name,
                code="unsupported_parameter",
            )
    if longest > model.engine.source_context:
        raise ContextOverflow(
            f"This model reads at most {model.engine.source_context} tokens. However, your {param} resulted in "
            f"{longest} tokens. Please reduce the length of the {param}.",
            param=param,
        )


def _sampling(parameters: GenerationParameters, tokenizer: Tokenizer) -> Sampling:
    biases = {int(key): value for key, value in parameters.logit_bias.items()}
    known_ids("logit_bias", biases, tokenizer)
    return Sampling(
        temperature=parameters.temperature if parameters.do_sample else _GREEDY,
        top_k=max(parameters.top_k, 0),
        top_p=parameters.top_p,
        min_p=parameters.min_p,
        typical_p=parameters.typical_p,
        repetition_penalty=parameters.repetition_penalty,
        presence_penalty=parameters.presence_penalty,
        frequency_penalty=parameters.frequency_penalty,
        no_repeat_ngram_size=parameters.no_repeat_ngram_size,
        logit_bias=tuple(sorted(biases.items())),
        seed=random.getrandbits(63) if parameters.seed is None else parameters.seed,
    )


def _beams(parameters: GenerationParameters) -> Beams | None:
    if parameters.num_beams == 1:
        return None
    return Beams(
        num_beams=parameters.num_beams,
        length_penalty=parameters.length_penalty,
        early_stopping=parameters.early_stopping,
    )


def known_ids(param: str, ids: Collection[int], tokenizer: Tokenizer) -> frozenset[int]:
    """The same ids; raises `InvalidRequest` when one of them is not in the vocabulary."""
    if any(not 0 <= token < tokenizer.vocab_size for token in ids):
        raise InvalidRequest(
            f"Invalid '{param}': expected token ids from 0 to {tokenizer.vocab_size - 1}.",
            param=param,
            code="invalid_value",
        )
    return frozenset(ids)


def _overflow(context: int, prompt: int, max_tokens: int | None, param: str) -> ContextOverflow:
    limit = f"This model's maximum context length is {context} tokens."
    if max_tokens is None or prompt >= context:
        return ContextOverflow(
            f"{limit} However, your {param} resulted in {prompt} tokens. Please reduce the length of the {param}.",
            param=param,
        )
    return ContextOverflow(
        f"{limit} However, you requested {prompt + max_tokens} tokens ({prompt} in the {param}, "
        f"{max_tokens} in the completion). Please reduce the length of the {param} or completion.",
        param=param,
    )
