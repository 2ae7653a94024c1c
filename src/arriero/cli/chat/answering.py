"""Asking for one answer, and showing it while it comes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TextIO

from arriero.cli.chat.conversation import Conversation
from arriero.cli.output import harmless
from arriero.cli.remote import Piece, Remote
from arriero.errors import ArrieroError

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


@dataclass(slots=True)
class Answer:
    """What came, whole or in part."""

    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    """Parameters that had no effect, as the server says."""
    stopped: bool = False
    """By whoever asked, with Ctrl-C."""
    failure: str | None = None
    """What broke it off."""
    first: float | None = None
    """Seconds until it began, on the clock of `time.perf_counter`, as is `seconds`."""
    seconds: float = 0.0


async def ask(remote: Remote, conversation: Conversation, screen: Screen) -> Answer:
    """The answer to the last question, shown as it comes; cancelling the task stops it and keeps what came.

    Raises `UpstreamError` where nothing came.
    """
    answer = Answer()
    started = time.perf_counter()
    try:
        async with aclosing(remote.answer(conversation.body())) as pieces:
            async for piece in pieces:
                if answer.first is None and (piece.text or piece.reasoning):
                    answer.first = time.perf_counter() - started
                answer.text += piece.text
                answer.finish_reason = piece.finish_reason or answer.finish_reason
                answer.usage |= piece.usage or {}
                answer.ignored += piece.ignored
                screen.show(piece)
    except asyncio.CancelledError:
        answer.stopped = True
    except ArrieroError as error:
        if answer.first is None:
            raise
        answer.failure = str(error)
    finally:
        screen.end()
    answer.seconds = time.perf_counter() - started
    return answer


def without_effect(names: Sequence[str]) -> str:
    """Tells which parameters a server ignores."""
    return f"(no effect on this server: {harmless(', '.join(names))})"


class Screen:
    """Where an answer is shown: a terminal, which is told what is thought as well, or a pipe."""

    def __init__(self, file: TextIO | None = None, *, terminal: bool, colours: bool = False) -> None:
        self._file = sys.stdout if file is None else file
        self._terminal = terminal
        self._dim, self._plain = (_DIM, _PLAIN) if colours else ("", "")
        self._thinking = False
        self._column = 0

    def show(self, piece: Piece) -> None:
        """Show it at once."""
        if piece.reasoning and self._terminal:
            if not self._thinking:
                self._write(f"{self._dim}Thinking: ")
                self._thinking = True
            self._write(harmless(piece.reasoning))
        if piece.text:
            self._end_thinking("\n\n")
            self._write(harmless(piece.text) if self._terminal else piece.text)

    def end(self) -> None:
        """The answer is over; whatever follows begins a line."""
        self._end_thinking("")
        if self._column:
            self._write("\n")

    def _end_thinking(self, after: str) -> None:
        if self._thinking:
            self._thinking = False
            self._write(self._plain + after)

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()
        if text:
            self._column = len(text) - text.rfind("\n") - 1
