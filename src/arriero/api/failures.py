"""What becomes of a request that goes wrong: one OpenAI error object, as long as nothing else has been sent."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from arriero.errors import ArrieroError
from arriero.wire.errors import error_answer
from arriero.wire.scope import note_error
from arriero.wire.sse import Message, Receive, Send

_log = logging.getLogger(__name__)


async def guarded(
    scope: MutableMapping[str, Any], receive: Receive, send: Send, answer: Callable[[Send], Awaitable[None]]
) -> None:
    """Let `answer` answer by what it is given to send with, and tell the client of any error that it raises.

    What goes wrong amid an answer is raised: the server logs it and breaks the connection.
    """
    started = False

    def watched(message: Message) -> Awaitable[None]:
        nonlocal started
        started = True
        return send(message)

    try:
        await answer(watched)
    except ClientDisconnect:  # amid the body
        await Response(status_code=499)(scope, receive, send)  # nobody reads it
    except Exception as error:
        if started:
            raise
        if not isinstance(error, ArrieroError):
            _log.exception("a request failed")
        note_error(scope, error)
        refusal = error_answer(error)
        await Response(refusal.body, refusal.status, refusal.headers, "application/json")(scope, receive, send)
