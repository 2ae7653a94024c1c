"""What an answer that is passed through says about tokens, read from its bytes without parsing them all.

A quotation mark inside a JSON string is escaped, so `"usage":` in the bytes of JSON is a key and never text.
Formats: `usage` of the OpenAI reference (chat, completions, embeddings, and responses with their `input_tokens`), and
server-sent events as in the HTML standard, section 9.2.
"""

from __future__ import annotations

import re
import time
from typing import Any

import orjson

from arriero.core import Meter

_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
_TEXT = re.compile(rb'"(?:content|text|reasoning_content|reasoning|arguments|delta)"\s*:\s*"(?!")')
"""A piece of an answer that is not empty: with nearly every server one token."""
_NAME = re.compile(rb'("model"\s*:\s*)("(?:[^"\\]|\\.)*")')
_HOLD_ANSWER = ("response", "message")
"""Where the first event of a stream of `/v1/responses` and of `/v1/messages` tells the model."""
_EVENT_DATA = re.compile(rb"^data:(.*)$", re.MULTILINE)
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_NO_USAGE = b',"usage":null}'
"""What events before the last have where usage was asked for."""
_LONGEST_EVENT = 2**20
"""Bytes; what goes on longer is passed on in parts."""
_LONGEST_USAGE = 4096
_KEPT = 16 * 1024
"""Bytes of the beginning and of the end of a body in which usage is looked for."""


class Events:
    """An event stream on its way through: whole events come out, and the meter runs."""

    def __init__(self, meter: Meter, *, hide_usage: bool, rename: Rename | None) -> None:
        """`hide_usage` takes out the event that tells nothing but usage, for callers that did not ask for it."""
        self._meter, self._hide_usage, self._rename = meter, hide_usage, rename
        self._held = b""
        self.told = False
        """The server has said how many tokens there are."""

    def take(self, data: bytes) -> bytes:
        """The events that are complete with `data`; the beginning of another is held back until it is whole."""
        data = self._held + data
        end = _whole(data)
        if len(data) - end > _LONGEST_EVENT:
            end = len(data)
        self._held = data[end:]
        return self._read(data[:end]) if end else b""

    def rest(self) -> bytes:
        """What is left when the stream has ended."""
        held, self._held = self._held, b""
        return self._read(held)

    def _read(self, data: bytes) -> bytes:
        if num_texts := len(_TEXT.findall(data)):
            if self._meter.first_token_at is None:
                self._meter.first_token_at = time.perf_counter()
            self._meter.completion_tokens += num_texts
        if _USAGE.search(data):
            self.told |= read_usage(data, self._meter)
            if self._hide_usage:
                data = _without_usage(data)
        if self._hide_usage:
            data = data.replace(_NO_USAGE, b"}")
        return self._rename.apply(data) if self._rename else data


def _whole(data: bytes) -> int:
    """Where the last whole event ends."""
    if data.endswith(b"\n\n"):
        return len(data)
    ends = ((data.rfind(mark), len(mark)) for mark in (b"\n\n", b"\r\n\r\n"))
    return max(at + length if at >= 0 else 0 for at, length in ends)


class Body:
    """A body in one piece on its way through, of which the ends are kept."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._head, self._tail = b"", b""
        self.size = 0

    def take(self, data: bytes) -> None:
        """Note the next part."""
        if self._meter.first_token_at is None:
            self._meter.first_token_at = time.perf_counter()
        self.size += len(data)
        room = _KEPT - len(self._head)
        self._head += data[:room]
        self._tail = (self._tail + data[room:])[-_KEPT:]

    def end(self) -> bool:
        """Read the usage; False when there is none."""
        return read_usage(self._tail, self._meter) or read_usage(self._head + self._tail, self._meter)


class Rename:
    """Puts the name that the caller used for a model where an answer tells the server's. One for each answer.

    Servers tell other names than they were asked for: a dated version's, a file's path. So theirs is read from the
    answer, and what callers have put into it themselves (`metadata`, arguments of tools) stays as it is.
    """

    def __init__(self, ours: str) -> None:
        self._ours = orjson.dumps(ours)
        self._theirs: bytes | None = None

    def apply(self, data: bytes) -> bytes:
        """A body in one piece, or whole events, with the other name."""
        if self._theirs is None:
            self._theirs = _name_told(data)
        return data if self._theirs is None else _NAME.sub(self._replaced, data)

    def _replaced(self, found: re.Match[bytes]) -> bytes:
        return found[1] + self._ours if found[2] == self._theirs else found[0]


def _name_told(data: bytes) -> bytes | None:
    """The JSON string, as it stands there, that names the model in a body or in the first event that names one."""
    for text in _EVENT_DATA.findall(data) or [data]:
        if (name := _model_of(text)) is not None:
            return next((found[2] for found in _NAME.finditer(text) if orjson.loads(found[2]) == name), None)
    return None


def _model_of(text: bytes) -> str | None:
    if not _NAME.search(text):
        return None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    for each in (value, *(value.get(field) for field in _HOLD_ANSWER)) if isinstance(value, dict) else ():
        if isinstance(each, dict) and isinstance(name := each.get("model"), str) and name:
            return name
    return None


def read_usage(data: bytes, meter: Meter) -> bool:
    """Set the meter to the last usage in some JSON; False when there is none, or none that tells a number."""
    told = False
    for found in _USAGE.finditer(data):
        usage = _object(data, found.end())
        read = _number(usage, "prompt_tokens", "input_tokens")
        written = _number(usage, "completion_tokens", "output_tokens")
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        if read is None and (total := _number(usage, "total_tokens")) is not None:
            read = total - (written or 0)
        if read is not None:
            meter.prompt_tokens, told = max(read, 0), True
        if written is not None:
            meter.completion_tokens, told = written, True
        if isinstance(details, dict):
            meter.cached_tokens = _number(details, "cached_tokens") or 0
    return told


def _object(data: bytes, start: int) -> dict[str, Any]:
    """The object that begins at `start`, without reading what follows; empty when it is none, or a long one."""
    depth = 0
    for found in re.finditer(rb"[{}]", data[start : start + _LONGEST_USAGE]):
        depth += 1 if found[0] == b"{" else -1
        if not depth:
            try:
                value = orjson.loads(data[start : start + found.end()])
            except orjson.JSONDecodeError:
                return {}
            return value if isinstance(value, dict) else {}
    return {}


def _number(usage: dict[str, Any], *names: str) -> int | None:
    values = (usage.get(name) for name in names)
    return next((value for value in values if type(value) is int and 0 <= value < 2**53), None)


def _without_usage(data: bytes) -> bytes:
    kept, start = [], 0
    for found in _EVENT_END.finditer(data):
        event, start = data[start : found.end()], found.end()
        if not (_USAGE.search(event) and _NO_CHOICES.search(event)):
            kept.append(event)
    return b"".join(kept) + data[start:]
