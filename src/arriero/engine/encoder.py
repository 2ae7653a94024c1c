"""An engine for an encoder in this process: it gives vectors, and no answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

import numpy as np
from numpy.typing import NDArray

from arriero.compute import Encoder
from arriero.core import Encoded, EncodingRequest, Event, GenerationRequest
from arriero.engine.batches import Batches, Input
from arriero.engine.thread import InProcess, ModelThread
from arriero.errors import InvalidRequest

BATCH_TOKENS = 512
"""Larger batches are no faster on a CPU, and make who comes next wait longer."""


class _Encoding:
    """What the model thread of an `EncodingEngine` does."""

    def __init__(self, encoder: Encoder, batches: Batches) -> None:
        self._encoder = encoder
        self.schedule = batches.schedule
        self.update = batches.update
        self.abort = batches.abort
        self.stats = batches.stats
        self.close = encoder.close

    def spare(self) -> None:
        """Nothing is to be gained before it is asked for."""

    def execute(self, batch: list[Input]) -> NDArray[np.float32]:
        return self._encoder.encode([each.tokens for each in batch], [each.first_segment for each in batch])


class EncodingEngine(InProcess):
    """Encodes the inputs of all callers with an encoder of this process; implements `arriero.core.Engine`.

    It belongs to the event loop that starts it and can be started once.
    """

    def __init__(
        self, encoder_factory: Callable[[], Encoder], *, max_queue: int = 256, batch_tokens: int = BATCH_TOKENS
    ) -> None:
        """The factory is called by `start`, in the model thread, where the encoder then lives.

        `max_queue` bounds the requests that wait, `batch_tokens` what is computed at once.
        """
        self._encoder_factory = encoder_factory
        self._max_queue = max_queue
        self._batch_tokens = batch_tokens
        self._context = 0
        super().__init__(ModelThread(self._open))

    @property
    def context(self) -> int:
        """Tokens that an input may have; known once started."""
        return self._context

    @property
    def source_context(self) -> int:
        """0: it is no encoder-decoder."""
        return 0

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        """Raises `InvalidRequest`: an encoder has nothing to say."""
        raise InvalidRequest("This model gives vectors, not answers.", param="model")
        yield []  # what makes this an iterator

    async def encode(self, request: EncodingRequest) -> Encoded:
        """The encoder's vectors, float32 [inputs, width].

        Raises:
            InvalidRequest, ContextOverflow, Overloaded: see `Batches.submit`.
            EngineDied: the engine failed or was closed, before or while it worked on the request.
        """
        return await self._thread.encoded(lambda: self._batches.submit(request))

    def _open(self) -> _Encoding:
        encoder = self._encoder_factory()
        self._context = encoder.info.context
        self._batches = Batches(encoder.info, batch_tokens=self._batch_tokens, max_queue=self._max_queue)
        return _Encoding(encoder, self._batches)
