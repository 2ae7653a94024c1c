"""From texts to vectors and scores: what the endpoints for embeddings, reranking and scoring have in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from arriero.api.encoding_parameters import EncodingParameters
from arriero.api.generation import apart_if_long, late
from arriero.api.request import known_ids
from arriero.api.routes import json_answer
from arriero.core import EncodingRequest
from arriero.errors import ContextOverflow, InvalidRequest
from arriero.pool import ServedModel
from arriero.wire.headers import new_id
from arriero.wire.scope import caller_of, meter_of
from arriero.wire.sse import while_connected

if TYPE_CHECKING:  # NumPy comes with the first vectors: a server that is asked for texts alone does without
    import numpy as np
    from numpy.typing import NDArray

Vectors: TypeAlias = "NDArray[np.float32]"
_LEAST_LENGTH = 1e-12


class TextEncoder:
    """Encodes what one request is about, and counts its tokens.

    What is at fault with an input is raised as `InvalidRequest` or `ContextOverflow`; `name(i)` is what input i is
    called in the request.
    """

    def __init__(self, request: Request, model: ServedModel, parameters: EncodingParameters) -> None:
        self.model = model
        self._parameters = parameters
        self._meter = meter_of(request.scope)
        self._caller = caller_of(request.scope)
        self._truncate = parameters.truncate
        self._context = model.engine.context

    @property
    def num_tokens(self) -> int:
        """Tokens of all that was encoded."""
        return self._meter.prompt_tokens

    async def texts(self, texts: Sequence[str], name: Callable[[int], str]) -> Vectors:
        """A vector for each text, float32 [texts, width], of length 1 if the model's are meant to be."""
        inputs = await apart_if_long(sum(map(len, texts)), lambda: [self._tokenize(text) for text in texts])
        for index, tokens in enumerate(inputs):
            self._check(tokens, name(index))
        return await self._vectors(inputs)

    async def tokens(self, inputs: Sequence[Sequence[int]], name: Callable[[int], str]) -> Vectors:
        """The same for token ids, which are taken as they are."""
        for index, tokens in enumerate(inputs):
            known_ids(_param(name(index)), tokens, self.model.tokenizer)
        if self._truncate:
            inputs = [tokens[: self._context] for tokens in inputs]
        for index, tokens in enumerate(inputs):
            self._check(tokens, name(index))
        return await self._vectors(inputs)

    async def pairs(self, pairs: Sequence[tuple[str, str]], name: Callable[[int], str]) -> Vectors:
        """What the model's classification head makes of each pair of texts, float32 [pairs]."""
        tokenizer = self.model.tokenizer
        limit = self._context if self._truncate else None
        inputs = await apart_if_long(
            sum(len(first) + len(second) for first, second in pairs),
            lambda: [tokenizer.encode_pair(first, second, max_tokens=limit) for first, second in pairs],
        )
        for index, (tokens, _) in enumerate(inputs):
            self._check(tokens, name(index))
        logits = (await self._encode([tokens for tokens, _ in inputs], [length for _, length in inputs]))[:, 0]
        return sigmoid(logits) if self.model.vectors.activation == "sigmoid" else logits

    async def _vectors(self, inputs: Sequence[Sequence[int]]) -> Vectors:
        vectors = await self._encode(inputs, [len(tokens) for tokens in inputs])
        return normalised(vectors) if self.model.vectors.normalise else vectors

    def _check(self, tokens: Sequence[int], name: str) -> None:
        if not tokens:
            raise InvalidRequest(f"Invalid '{name}': it has no tokens.", param=_param(name), code="invalid_value")
        if len(tokens) > self._context:
            raise ContextOverflow(
                f"This model's maximum context length is {self._context} tokens, but '{name}' has {len(tokens)}. "
                "Please shorten it, or set 'truncate' to true.",
                param=_param(name),
            )

    def _tokenize(self, text: str) -> list[int]:
        tokens = self.model.tokenizer.encode(text)
        if self._truncate and len(tokens) > self._context:
            return self.model.tokenizer.encode_within(text, self._context)
        return tokens

    async def _encode(self, inputs: Sequence[Sequence[int]], first_segments: Sequence[int]) -> Vectors:
        self._meter.prompt_tokens += sum(map(len, inputs))
        asked = EncodingRequest(
            id=new_id("encode-"),
            inputs=tuple(map(tuple, inputs)),
            first_segments=tuple(first_segments),
            adapter=self.model.adapter,
            caller=self._caller.id,
            weight=self._caller.weight,
            priority=self._parameters.priority,
        )
        self._meter.queued_at = time.perf_counter()
        try:
            async with asyncio.timeout(self._parameters.deadline):
                encoded = await self.model.engine.encode(asked)
        except TimeoutError:
            raise late(self._parameters.deadline) from None
        self._meter.queue_seconds = encoded.queue_seconds
        return encoded.vectors


async def answered(request: Request, ignored: list[str], work: Coroutine[Any, Any, object]) -> Response:
    """The JSON that `work` returns, which may hold arrays of float32; a client that leaves ends the work."""
    body = await while_connected(request.scope, request.receive, work)
    if body is None:
        return Response(status_code=499)  # nobody reads it
    return json_answer(body, ignored=ignored)


def sigmoid(values: Vectors) -> Vectors:
    """Logits as probabilities."""
    import numpy as np

    result: Vectors = np.reciprocal(1 + np.exp(-np.clip(values, -80, 80)))
    return result


def normalised(vectors: Vectors) -> Vectors:
    """Each divided by its length."""
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Vectors = vectors / np.maximum(lengths, np.float32(_LEAST_LENGTH))
    return result


def _param(name: str) -> str:
    """The parameter, without the index of what in it is at fault."""
    return name.partition(".")[0]
