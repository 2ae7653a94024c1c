"""Log lines on stderr: for people, or one JSON object each.

Whoever writes `extra={"fields": {...}}` gives a line values of its own. No text that came from outside can end a line
or look like another one: in lines for people everything that is not printable is escaped, and tracebacks are indented.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Literal

import orjson

from arriero.wire.scope import REQUEST_ID


def set_up(level: str, form: Literal["text", "json"] = "text") -> None:
    """Show lines of at least this level; those of libraries only when something is wrong, or at `debug`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    least = logging.getLevelNamesMapping()[level.upper()]
    for name in ("uvicorn", "asyncio", "httpx2"):
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else max(least, logging.WARNING))


class TextLines(logging.Formatter):
    """Lines for people: time, level, message, then `name=value` pairs."""

    def __init__(self) -> None:
        super().__init__(datefmt="%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback's lines indented below it."""
        time = self.formatTime(record, self.datefmt)
        pairs = [f" {name}={_word(value)}" for name, value in _fields(record).items()]
        line = f"{time} {record.levelname} {_printable(record.getMessage())}{''.join(pairs)}"
        if not record.exc_info:
            return line
        traceback = self.formatException(record.exc_info).split("\n")
        return "\n".join([line, *(f"  {_printable(each)}" for each in traceback)])


class JsonLines(logging.Formatter):
    """A JSON object a line: `time` (UTC), `level`, `message`, `exception` where there is one, and the line's own."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # half of a surrogate pair, which is no UTF-8
            return json.dumps(line, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """The line's own values, and the id of the request that it is about."""
    fields: dict[str, object] = getattr(record, "fields", {})
    request = REQUEST_ID.get()
    return {"id": request, **fields} if request else fields


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


def _word(value: object) -> str:
    """A value as one word, or as a JSON text."""
    text = str(value)
    return text if text and text.isprintable() and " " not in text and '"' not in text else json.dumps(text)
