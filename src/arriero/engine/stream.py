"""The event loop's end of one request, whatever works on it elsewhere: a thread, or another process."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from arriero.core import Encoded, Event, Finished
from arriero.errors import EngineDied

News = TypeVar("News", Event, Encoded)
"""What happens to a request; `Finished` and `Encoded` end a part of it."""
_ENDS = (Finished, Encoded)


class Stream(Generic[News]):
    """What has happened to a request and was not looked at yet."""

    def __init__(self, num_parts: int, *, streamed: bool = True) -> None:
        """Unless it is `streamed`, a look finds the first events, and then nothing before the end."""
        self.num_unfinished = num_parts
        self._streamed = streamed
        self._is_eager = True
        self._error: Exception | None = None
        self._events: list[News] = []
        self._news: asyncio.Future[None] | None = None

    def push(self, event: News) -> None:
        """One more thing has happened."""
        self._events.append(event)
        if isinstance(event, _ENDS):
            self.num_unfinished -= 1
        if self._news and (self._is_eager or not self.num_unfinished):
            self._wake()

    def fail(self, error: Exception) -> None:
        """Nothing more will come, and why; what came before is still there to be taken."""
        self._error = error
        self._wake()

    async def take(self) -> list[News]:
        """Everything since the last look, once there is something; empty when nothing more will come."""
        if not self._is_ready():
            self._news = asyncio.get_running_loop().create_future()
            await self._news
            self._news = None
        events = self.rest()
        self._is_eager = self._streamed
        if not events and self._error:
            if isinstance(self._error, EngineDied):  # many share it
                raise type(self._error)(str(self._error)) from self._error
            raise self._error
        return events

    def rest(self) -> list[News]:
        """Everything since the last look, as of now."""
        events, self._events = self._events, []
        return events

    def _is_ready(self) -> bool:
        return bool(self._events and self._is_eager) or not self.num_unfinished or self._error is not None

    def _wake(self) -> None:
        if self._news and not self._news.done():
            self._news.set_result(None)
