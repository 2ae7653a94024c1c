"""What a request may ask of an engine, however empty it is."""

from __future__ import annotations

from arriero.compute import RunnerInfo
from arriero.core import EncodingRequest, GenerationRequest
from arriero.engine import sampling
from arriero.engine.sequence import num_slots
from arriero.errors import ContextOverflow, InvalidRequest


def check(request: GenerationRequest, info: RunnerInfo, token_budget: int) -> None:
    """Raise what is wrong with a request, before it is queued.

    Raises:
        InvalidRequest: a parameter makes no sense, or there are more choices than slots.
        ContextOverflow: it asks for more tokens than the context or the budget can ever hold.
    """
    sampling.check(request.sampling)
    _check_counts(request)
    _check_beams(request)
    _check_tokens(request, vocabulary(request, info))
    _check_slots(request, info.num_slots)
    if info.source_context:
        _check_source(request, info)
    else:
        _check_context(request, info.context)
    _check_budget(request, token_budget)


def check_inputs(request: EncodingRequest, vocab_size: int, context: int) -> None:
    """Raise what is wrong with an encoding request, before it is queued.

    Raises:
        InvalidRequest: there is no input, or one without tokens, or a token id is out of range.
        ContextOverflow: an input is longer than the context.
    """
    if not request.inputs or not all(request.inputs):
        raise InvalidRequest("An input needs at least one token.", param="input")
    for index, tokens in enumerate(request.inputs):
        if min(tokens) < 0 or max(tokens) >= vocab_size:
            raise InvalidRequest(f"The token ids of input {index} must be below {vocab_size}.", param="input")
        if len(tokens) > context:
            raise ContextOverflow(
                f"This model's context is {context} tokens, but input {index} has {len(tokens)}.", param="input"
            )


def vocabulary(request: GenerationRequest | EncodingRequest, info: RunnerInfo) -> int:
    """Tokens that the request's adapter knows."""
    if not 0 <= request.adapter <= info.num_adapters:
        raise InvalidRequest(f"The model has no adapter {request.adapter}.", param="model")
    return info.vocab_sizes[request.adapter] if info.vocab_sizes else info.vocab_size


def _check_counts(request: GenerationRequest) -> None:
    if request.num_choices < 1:
        raise InvalidRequest("n must be at least 1.", param="n")
    if request.max_tokens < 0:
        raise InvalidRequest("max_tokens must be at least 0.", param="max_tokens")
    if request.likely_tokens is not None and request.likely_tokens < 1:
        raise InvalidRequest("likely_tokens must be at least 1.", param="max_tokens")
    if not 0 <= request.min_tokens <= request.max_tokens:
        raise InvalidRequest("min_tokens must be between 0 and max_tokens.", param="min_tokens")
    if request.logprobs is not None and request.logprobs < 0:
        raise InvalidRequest("logprobs must be at least 0.", param="logprobs")
    if request.prompt_logprobs is not None and request.prompt_logprobs < 0:
        raise InvalidRequest("prompt_logprobs must be at least 0.", param="prompt_logprobs")


def _check_tokens(request: GenerationRequest, vocab_size: int) -> None:
    if not request.prompts or not all(request.prompts):
        raise InvalidRequest("A prompt needs at least one token.", param="prompt")
    if any(min(prompt) < 0 or max(prompt) >= vocab_size for prompt in request.prompts):
        raise InvalidRequest(f"A prompt's token ids must be below {vocab_size}.", param="prompt")
    if not all(0 <= token < vocab_size for token, _ in request.sampling.logit_bias):
        raise InvalidRequest(f"The token ids of logit_bias must be below {vocab_size}.", param="logit_bias")


def _check_beams(request: GenerationRequest) -> None:
    beams = request.beams
    if beams is None:
        return
    if beams.num_beams < 1:
        raise InvalidRequest("num_beams must be at least 1.", param="num_beams")
    if request.num_choices > beams.num_beams:
        raise InvalidRequest("n must be at most num_beams.", param="n")
    if not -10 <= beams.length_penalty <= 10:
        raise InvalidRequest("length_penalty must be between -10 and 10.", param="length_penalty")
    if beams.early_stopping not in (False, True, "never"):
        raise InvalidRequest('early_stopping must be false, true or "never".', param="early_stopping")


def _check_slots(request: GenerationRequest, available: int) -> None:
    num_prompts, each = len(request.prompts), num_slots(request)
    if num_prompts * each > available:
        asked = f"{each} {'beams' if request.beams else 'choices'}"
        raise InvalidRequest(
            f"{asked if num_prompts == 1 else f'{num_prompts} prompts with {asked} each'} are more than the "
            f"{available} answers that this model gives at once.",
            param="prompt" if num_prompts > available else "num_beams" if request.beams else "n",
        )


def _check_source(request: GenerationRequest, info: RunnerInfo) -> None:
    """An encoder reads the prompts, whose length has nothing to do with the answers'."""
    if request.prompt_logprobs is not None:
        raise InvalidRequest(
            "An encoder-decoder writes no prompt, so prompt_logprobs has no meaning.", param="prompt_logprobs"
        )
    longest, room = max(map(len, request.prompts)), info.context - len(info.decoder_start)
    if longest > info.source_context:
        raise ContextOverflow(
            f"This model reads {info.source_context} tokens at most, but the prompt has {longest}.", param="prompt"
        )
    if request.max_tokens > room:
        raise ContextOverflow(
            f"This model writes {room} tokens at most, but the request asks for {request.max_tokens}.",
            param="max_tokens",
        )


def _check_context(request: GenerationRequest, context: int) -> None:
    longest, max_tokens = max(map(len, request.prompts)), request.max_tokens
    if longest + max_tokens > context:
        raise ContextOverflow(
            f"This model's context is {context} tokens, but the request asks for {longest + max_tokens}: "
            f"{longest} in the prompt and {max_tokens} in the answer.",
            param="prompt" if longest >= context else "max_tokens",
        )


def _check_budget(request: GenerationRequest, token_budget: int) -> None:
    lengths, max_tokens = [len(prompt) for prompt in request.prompts], request.max_tokens
    likely = max_tokens if request.beams else min(request.likely_tokens or max_tokens, max_tokens)
    alone = sum(lengths) + len(lengths) * likely
    total = alone * num_slots(request) + max_tokens - likely  # one of them at least can go to its end
    if total > token_budget:
        several = "num_beams" if request.beams else "n"
        param = several if alone <= token_budget else "prompt" if sum(lengths) >= token_budget else "max_tokens"
        raise ContextOverflow(
            f"The request may come to {total} tokens over all its prompts and "
            f"{'beams' if request.beams else 'choices'}; this server holds {token_budget} at once.",
            param=param,
        )
