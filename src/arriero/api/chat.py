"""`POST /v1/chat/completions`: a conversation in, the assistant's next message out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from arriero.api.body import read_parameters
from arriero.api.generation import Delivery, apart_if_long, default_model, find_model, require, respond
from arriero.api.logprobs import chat_logprobs, prompt_table
from arriero.api.messages import template_fields
from arriero.api.parameters import ChatParameters
from arriero.api.profile import Profile
from arriero.api.request import Conversation, check, generation_request, without_effect
from arriero.api.routes import Description, Routes
from arriero.api.shape import Choice, Shape, Usage
from arriero.core import FinishReason, GenerationRequest, PromptScored
from arriero.errors import InvalidRequest
from arriero.pool import Pool, ServedModel
from arriero.text.stream import Delta, Ended, ScoredToken
from arriero.wire.scope import caller_of

SERVICE_TIER = "default"


def chat_routes(pool: Pool, delivery: Delivery) -> Routes:
    """The route of chat completions, for the models of `pool`."""
    routes = Routes("Chat")
    profile, manners = delivery.profile, delivery.manners_for(pool)
    name = pool.default_name
    default = default_model(pool, profile)

    description = Description(
        takes=ChatParameters,
        gives="AlpacaChatCompletion" if profile.alpaca else "ChatCompletion",
        chunk="AlpacaChatCompletionChunk" if profile.alpaca else "ChatCompletionChunk",
        example={"model": name, "messages": [{"role": "user", "content": "Tell me a joke."}]},
    )

    @routes.post("/v1/chat/completions", description)
    async def create_chat_completion(request: Request) -> Response:
        """Answer a conversation."""

        def complete(body: dict[str, Any]) -> dict[str, Any]:
            return default | manners.of(body.get("model")).complete_chat(body)

        parameters, ignored = await read_parameters(request, ChatParameters, delivery.body_limit, complete)
        manner = manners.of(parameters.model)
        model = require(await find_model(request, pool, parameters.model, profile, ignored), "completion", asked="chat")
        check(parameters, manner.limits)
        messages = template_fields(parameters.messages)
        generation = generation_request(
            model,
            parameters,
            [await encode_chat(model, parameters, messages)],
            id=manner.profile.new_id("chatcmpl-"),
            max_tokens=parameters.max_tokens if parameters.max_tokens is not None else parameters.max_completion_tokens,
            default_max_tokens=manner.profile.chat_tokens,
            limits=manner.limits,
            param="messages",
            caller=caller_of(request.scope),
        )
        shape = _ChatShape(manner.profile, model, generation, parameters, messages)
        ignored += without_effect(parameters)
        return await respond(request, model, generation, shape, parameters, ignored, delivery, manner.profile)

    return routes


async def encode_chat(model: ServedModel, parameters: Conversation, messages: Sequence[dict[str, str]]) -> list[int]:
    """The prompt that the model's template makes of `messages`; raises `InvalidRequest` where it cannot."""
    template = model.template
    if template is None:
        raise InvalidRequest(
            f"The model '{model.name}' has no chat template; use /v1/completions instead.", param="model"
        )
    developer = "developer" if template.knows_developers else "system"
    conversation = [
        {**message, "role": developer if message["role"] == "developer" else message["role"]} for message in messages
    ]
    goes_on = parameters.continue_final_message
    opens = not goes_on if parameters.add_generation_prompt is None else parameters.add_generation_prompt
    return await apart_if_long(
        sum(len(message["content"]) for message in conversation),
        lambda: template.encode(
            conversation,
            add_generation_prompt=opens,
            continue_final_message=goes_on,
            **parameters.chat_template_kwargs,
        ),
    )


class _ChatShape(Shape):
    """Chat completions and their chunks; Alpaca's choices begin with the conversation."""

    def __init__(
        self,
        profile: Profile,
        model: ServedModel,
        generation: GenerationRequest,
        parameters: ChatParameters,
        messages: Sequence[dict[str, str]],
    ) -> None:
        super().__init__(
            profile,
            model,
            id=generation.id,
            object="chat.completion.chunk" if parameters.stream else "chat.completion",
            include_usage=parameters.include_usage,
            service_tier=SERVICE_TIER,
        )
        self._tokenizer = model.tokenizer
        self._prompt = generation.prompts[0]
        self._parameters = parameters
        self._conversation = messages if profile.alpaca else []
        self._more: dict[str, Any] = {}

    def score(self, scored: PromptScored) -> None:
        """Take the prompt's log-probabilities."""
        alternatives = self._parameters.prompt_logprobs
        assert alternatives is not None
        self._more["prompt_logprobs"] = prompt_table(self._tokenizer, self._prompt, scored.logprobs, alternatives)

    def opening(self, index: int) -> bytes:
        """The event that tells who speaks."""
        said = {"role": "assistant", "content": ""} | ({} if self._terse else {"refusal": None})
        return self._event(self._answer(index, {"delta": said}))

    def _delta(self, delta: Delta) -> bytes:
        return self._event(self._answer(delta.index, {"delta": {"content": delta.text}}, delta.tokens))

    def closing(self, ended: Ended) -> bytes:
        """The event that tells why the message ended; what ended it is no part of a chat's log-probabilities."""
        return b"" if self._terse else self._event(self._answer(ended.index, {"delta": {}}, reason=ended.reason))

    def body(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The answer in one piece."""
        said = [
            self._choice(index, {"message": {"role": message["role"], "content": message["content"]}})
            for index, message in enumerate(self._conversation)
        ]
        others: dict[str, Any] = {} if self._terse else {"refusal": None, "annotations": []}
        answers = [
            self._answer(
                index,
                {"message": {"role": "assistant", "content": choice.text, **others}},
                choice.tokens,
                choice.reason,
                whole=True,
            )
            for index, choice in enumerate(choices)
        ]
        return self._body(said + answers, usage, **self._more)

    def _answer(
        self,
        index: int,
        said: dict[str, Any],
        tokens: Sequence[ScoredToken] = (),
        reason: FinishReason | None = None,
        whole: bool = False,
    ) -> dict[str, Any]:
        alternatives = self._parameters.alternatives
        wanted = alternatives is not None and (tokens or whole)
        logprobs = chat_logprobs(self._tokenizer, tokens, alternatives or 0) if wanted else None
        return self._choice(len(self._conversation) + index, said, logprobs, reason)
