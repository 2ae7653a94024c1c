"""From texts to vectors and scores: what the endpoints for embeddings, reranking and scoring have in common."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import orjson
from fastapi import Request, Response
from numpy.typing import NDArray

from arriero.api.generation import apart_if_long
from arriero.api.request import known_ids
from arriero.core import EncodingRequest
from arriero.errors import ContextOverflow, InvalidRequest
from arriero.pool import ServedModel
from arriero.wire.headers import IGNORED, ignored_header, new_id
from arriero.wire.sse import while_connected

Vectors = NDArray[np.float32]
_LEAST_LENGTH = 1e-12


class TextEncoder:
    """Encodes what one request is about, and counts its tokens.

    What is at fault with an input is raised as `InvalidRequest` or `ContextOverflow`; `name(i)` is what input i is
    called in the request.
    """

    def __init__(self, model: ServedModel, *, truncate: bool) -> None:
        """`truncate` cuts inputs that are longer than the model's context; else they are refused."""
        self.model = model
        self.num_tokens = 0
        self._truncate = truncate
        self._context = model.engine.context

    async def texts(self, texts: Sequence[str], name: Callable[[int], str]) -> Vectors:
        """A vector for each text, float32 [texts, width], of length 1 if the model's are meant to be."""
        tokenize = self.model.tokenizer.encode
        inputs = await apart_if_long(sum(map(len, texts)), lambda: [tokenize(text) for text in texts])
        return await self._vectors([self._fitted(tokens, name(index)) for index, tokens in enumerate(inputs)])

    async def tokens(self, inputs: Sequence[Sequence[int]], name: Callable[[int], str]) -> Vectors:
        """The same for token ids, which are taken as they are."""
        for index, tokens in enumerate(inputs):
            known_ids(_param(name(index)), tokens, self.model.tokenizer)
        if self._truncate:
            inputs = [tokens[: self._context] for tokens in inputs]
        for index, tokens in enumerate(inputs):
            self._check(tokens, name(index))
        return await self._vectors(inputs)

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

    def _fitted(self, tokens: list[int], name: str) -> list[int]:
        """A text's token ids, cut if that is asked for; the special tokens that end it stay."""
        if self._truncate and len(tokens) > self._context:
            end = len(tokens)
            while end and self.model.tokenizer.is_special(tokens[end - 1]):
                end -= 1
            tokens = [*tokens[: self._context - (len(tokens) - end)], *tokens[end:]]
        self._check(tokens, name)
        return tokens

    async def _encode(self, inputs: Sequence[Sequence[int]], first_segments: Sequence[int]) -> Vectors:
        self.num_tokens += sum(map(len, inputs))
        return await self.model.engine.encode(
            EncodingRequest(
                id=new_id("encode-"),
                inputs=tuple(map(tuple, inputs)),
                first_segments=tuple(first_segments),
                adapter=self.model.adapter,
            )
        )


async def answered(request: Request, ignored: list[str], work: Coroutine[Any, Any, object]) -> Response:
    """The JSON that `work` returns, which may hold arrays of float32; a client that leaves ends the work."""
    body = await while_connected(request.receive, work)
    if body is None:
        return Response(status_code=499)  # nobody reads it
    headers = {IGNORED: ignored_header(ignored)} if ignored else {}
    return Response(
        orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), headers=headers, media_type="application/json"
    )


def normalised(vectors: Vectors) -> Vectors:
    """Each divided by its length."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Vectors = vectors / np.maximum(lengths, np.float32(_LEAST_LENGTH))
    return result


def _param(name: str) -> str:
    """The parameter, without the index of what in it is at fault."""
    return name.partition(".")[0]
