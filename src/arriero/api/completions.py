"""`POST /v1/completions`: a text in, its continuation out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from arriero.api.body import read_parameters
from arriero.api.generation import Delivery, apart_if_long, default_model, find_model, require, respond
from arriero.api.logprobs import AnswerOffsets, TextLogprobs, prompt_table, prompt_text_logprobs
from arriero.api.parameters import CompletionParameters
from arriero.api.profile import Profile
from arriero.api.request import check, generation_request, without_effect
from arriero.api.routes import Description, Routes
from arriero.api.shape import Choice, Shape, Usage
from arriero.core import GenerationRequest, PromptScored
from arriero.errors import InvalidRequest
from arriero.models.tokenizers.tokenizer import Tokenizer
from arriero.pool import Pool, ServedModel
from arriero.text import alpaca
from arriero.text.infill import Infill, infill_of
from arriero.text.stream import Delta, Ended, ScoredToken
from arriero.wire.scope import caller_of

Prompt = str | list[int]


def completion_routes(pool: Pool, delivery: Delivery) -> Routes:
    """The route of text completions, for the models of `pool`."""
    routes = Routes("Completions")
    profile, manners = delivery.profile, delivery.manners_for(pool)
    name = pool.default_name
    default = default_model(pool, profile)

    answer = "AlpacaCompletion" if profile.alpaca else "Completion"
    description = Description(
        takes=CompletionParameters,
        gives=answer,
        chunk=answer,
        example={"model": name, "prompt": "Once upon a time", "max_tokens": 32},
    )

    @routes.post("/v1/completions", description)
    async def create_completion(request: Request) -> Response:
        """Continue one text or several."""

        def complete(body: dict[str, Any]) -> dict[str, Any]:
            return default | manners.of(body.get("model")).complete_text(body)

        parameters, ignored = await read_parameters(request, CompletionParameters, delivery.body_limit, complete)
        manner = manners.of(parameters.model)
        model = require(await find_model(request, pool, parameters.model, profile, ignored), "completion")
        check(parameters, manner.limits)
        infill = _infill(model, parameters)
        prompts = _prompts(parameters)
        if manner.profile.alpaca and not infill:
            prompts = [alpaca.instruction(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        size = sum(map(len, prompts)) + len(parameters.suffix)
        generation = generation_request(
            model,
            parameters,
            await apart_if_long(
                size, lambda: [_encode(model.tokenizer, prompt, infill, parameters.suffix) for prompt in prompts]
            ),
            id=manner.profile.new_id("cmpl-"),
            max_tokens=parameters.max_tokens,
            default_max_tokens=manner.profile.completion_tokens,
            limits=manner.limits,
            param="prompt",
            caller=caller_of(request.scope),
            end_token_ids=infill.end_token_ids if infill else frozenset(),
        )
        shape = _CompletionShape(manner.profile, model, generation, parameters, prompts)
        ignored += without_effect(parameters)
        return await respond(request, model, generation, shape, parameters, ignored, delivery, manner.profile)

    return routes


def _prompts(parameters: CompletionParameters) -> list[Prompt]:
    prompt = parameters.prompt
    if prompt == []:
        raise InvalidRequest("Invalid 'prompt': expected at least one prompt.", param="prompt", code="empty_array")
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return prompt  # type: ignore[return-value]  # its elements are all of the first one's type


def _infill(model: ServedModel, parameters: CompletionParameters) -> Infill | None:
    """How to fill in before the suffix; None where there is no suffix."""
    if not parameters.suffix:
        return None
    infill = infill_of(model.tokenizer)
    if infill is None:
        raise InvalidRequest(
            f"Unsupported parameter: 'suffix'; the model '{model.name}' was not trained to fill in the middle.",
            param="suffix",
            code="unsupported_parameter",
        )
    return infill


def _encode(tokenizer: Tokenizer, prompt: Prompt, infill: Infill | None, suffix: str) -> list[int]:
    if isinstance(prompt, list) and (not prompt or min(prompt) < 0 or max(prompt) >= tokenizer.vocab_size):
        raise InvalidRequest(
            f"Invalid 'prompt': expected token ids from 0 to {tokenizer.vocab_size - 1}, at least one.",
            param="prompt",
            code="invalid_value",
        )
    if infill:
        return infill.encode(prompt, suffix)
    if isinstance(prompt, list):
        return prompt
    return tokenizer.encode(prompt) or [_document_start(tokenizer)]


def _document_start(tokenizer: Tokenizer) -> int:
    """What stands for an empty prompt: the token that parts documents from each other in training."""
    if tokenizer.bos_token_id is not None:
        return tokenizer.bos_token_id
    if tokenizer.end_token_ids:
        return min(tokenizer.end_token_ids)
    raise InvalidRequest("This model cannot answer an empty prompt.", param="prompt", code="invalid_value")


class _CompletionShape(Shape):
    """Text completions; a chunk of a stream has the shape of the whole."""

    def __init__(
        self,
        profile: Profile,
        model: ServedModel,
        generation: GenerationRequest,
        parameters: CompletionParameters,
        prompts: Sequence[Prompt],
    ) -> None:
        super().__init__(
            profile,
            model,
            id=generation.id,
            object="text_completion",
            include_usage=parameters.include_usage,
        )
        self._tokenizer = model.tokenizer
        self._parameters = parameters
        self._generation = generation
        self._texts = [
            prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt, skip_special_tokens=False)
            for prompt in (prompts if parameters.echo or parameters.logprobs is not None else ())
        ]
        """Of each prompt, where it is echoed or its length counts."""
        self._scores: dict[int, PromptScored] = {}
        self._offsets: dict[int, AnswerOffsets] = {}

    def score(self, scored: PromptScored) -> None:
        """Take a prompt's log-probabilities."""
        self._scores[scored.prompt] = scored

    def opening(self, index: int) -> bytes:
        """The event that echoes the prompt."""
        if not self._parameters.echo:
            return b""
        text, logprobs = self._echo(index)
        return self._event(self._choice(index, {"text": text}, logprobs))

    def _delta(self, delta: Delta) -> bytes:
        logprobs = self._logprobs(delta.index, delta.tokens) if delta.tokens else None
        return self._event(self._choice(delta.index, {"text": delta.text}, logprobs))

    def closing(self, ended: Ended) -> bytes:
        """The event that tells why the text ended, and by which token, where log-probabilities are asked for."""
        logprobs = self._logprobs(ended.index, (), ended.ending) if ended.ending else None
        if self._terse and logprobs is None:
            return b""
        return self._event(self._choice(ended.index, {"text": ""}, logprobs, ended.reason))

    def body(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The answer in one piece."""
        return self._body([self._whole(index, choice) for index, choice in enumerate(choices)], usage)

    def _whole(self, index: int, choice: Choice) -> dict[str, Any]:
        echoed, prompt_logprobs = self._echo(index) if self._parameters.echo else ("", None)
        logprobs = self._logprobs(index, choice.tokens, choice.ending)
        if logprobs is not None and prompt_logprobs is not None:
            logprobs = {name: prompt_logprobs[name] + values for name, values in logprobs.items()}
        said: dict[str, Any] = {"text": echoed + choice.text}
        if self._parameters.prompt_logprobs is not None:
            scores = self._scores[index // self._parameters.n]
            prompt = self._generation.prompts[scores.prompt]
            said["prompt_logprobs"] = prompt_table(
                self._tokenizer, prompt, scores.logprobs, self._parameters.prompt_logprobs
            )
        return self._choice(index, said, logprobs, choice.reason)

    def _echo(self, index: int) -> tuple[str, TextLogprobs | None]:
        prompt = index // self._parameters.n
        text, alternatives = self._texts[prompt], self._parameters.logprobs
        if alternatives is None:
            return text, None
        tokens, scores = self._generation.prompts[prompt], self._scores[prompt].logprobs
        return text, prompt_text_logprobs(self._tokenizer, tokens, text, scores, alternatives)

    def _logprobs(
        self, index: int, tokens: Sequence[ScoredToken], ending: ScoredToken | None = None
    ) -> TextLogprobs | None:
        alternatives = self._parameters.logprobs
        if alternatives is None:
            return None
        if index not in self._offsets:
            start = len(self._texts[index // self._parameters.n])
            skips = self._parameters.skip_special_tokens
            self._offsets[index] = AnswerOffsets(self._tokenizer, alternatives, start, skips)
        return self._offsets[index].add(tokens, ending)
