"""`POST /tokenize` and `POST /detokenize`: what a text or a conversation is to the model, as in vLLM."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from arriero.api.body import read_parameters
from arriero.api.chat import encode_chat
from arriero.api.generation import Delivery, apart_if_long, default_model, find_model
from arriero.api.messages import Message, template_fields
from arriero.api.objects import JSONObject
from arriero.api.parameters import TokenIds
from arriero.api.request import check_conversation, known_ids
from arriero.api.routes import Description, Routes, json_answer
from arriero.errors import InvalidRequest
from arriero.pool import Pool, ServedModel


class TokenizeParameters(JSONObject):
    """The body of `POST /tokenize`: a prompt or messages."""

    model: str = Field(description="Id of the model. Profile alpaca: any, or none.")
    prompt: str | None = Field(None, description="A text, which is put into no template.")
    messages: Annotated[list[Message], Field(fail_fast=True)] | None = Field(
        None, min_length=1, description="A conversation, which is put into the chat template."
    )
    add_special_tokens: bool = Field(
        True, description="Put a beginning of sequence before a prompt, where the model wants one."
    )
    add_generation_prompt: bool | None = Field(None, description="As for chat completions.")
    continue_final_message: bool = Field(False, description="As for chat completions.")
    chat_template_kwargs: dict[str, Any] = Field({}, description="As for chat completions.")
    return_token_strs: bool = Field(False, description="Also tell what each token reads.")


class DetokenizeParameters(JSONObject):
    """The body of `POST /detokenize`."""

    model: str = Field(description="Id of the model. Profile alpaca: any, or none.")
    tokens: TokenIds = Field(description="Token ids.")


def token_routes(pool: Pool, delivery: Delivery) -> Routes:
    """The routes between text and tokens, for the models of `pool`."""
    routes = Routes("Tokens")
    profile, manners = delivery.profile, delivery.manners_for(pool)
    name = pool.default_name
    defaults = default_model(pool, profile)

    def complete(body: dict[str, Any]) -> dict[str, Any]:
        return defaults | manners.of(body.get("model")).spell_out(body)

    text = {"model": name, "prompt": "Once upon a time"}

    @routes.post("/tokenize", Description(takes=TokenizeParameters, gives="Tokenized", example=text))
    async def tokenize(request: Request) -> Response:
        """Tell the tokens of a text or of a conversation."""
        parameters, ignored = await read_parameters(request, TokenizeParameters, delivery.body_limit, complete)
        model = await find_model(request, pool, parameters.model, profile, ignored)
        tokens = await _tokens(model, parameters)
        texts = [_read(model, token) for token in tokens] if parameters.return_token_strs else None
        sizes = {"count": len(tokens), "max_model_len": model.engine.context}
        return json_answer(sizes | {"tokens": tokens, "token_strs": texts}, ignored=ignored)

    first = {"model": name, "tokens": [0]}

    @routes.post("/detokenize", Description(takes=DetokenizeParameters, gives="Detokenized", example=first))
    async def detokenize(request: Request) -> Response:
        """Tell the text of tokens."""
        parameters, ignored = await read_parameters(request, DetokenizeParameters, delivery.body_limit, complete)
        model = await find_model(request, pool, parameters.model, profile, ignored)
        known_ids("tokens", parameters.tokens, model.tokenizer)
        text = await apart_if_long(
            len(parameters.tokens), lambda: model.tokenizer.decode(parameters.tokens, skip_special_tokens=False)
        )
        return json_answer({"prompt": text}, ignored=ignored)

    return routes


async def _tokens(model: ServedModel, parameters: TokenizeParameters) -> list[int]:
    if (parameters.prompt is None) == (parameters.messages is None):
        name: Literal["prompt", "messages"] = "prompt" if parameters.prompt is None else "messages"
        raise InvalidRequest(
            f"Invalid '{name}': expected either 'prompt' or 'messages'.", param=name, code="invalid_value"
        )
    if parameters.messages is not None:
        check_conversation(parameters)
        return await encode_chat(model, parameters, template_fields(parameters.messages))
    text = parameters.prompt or ""
    return await apart_if_long(
        len(text), lambda: model.tokenizer.encode(text, add_special_tokens=parameters.add_special_tokens)
    )


def _read(model: ServedModel, token: int) -> str:
    return model.tokenizer.token_bytes(token).decode("utf-8", "replace")
