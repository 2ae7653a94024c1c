"""What was said so far, and how it is kept in a file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arriero.errors import ConfigError


@dataclass(slots=True)
class Conversation:
    """Messages as the API has them: perhaps one of the system first, then questions and answers in turn."""

    model: str
    parameters: dict[str, Any] = field(default_factory=dict)
    """Of every request, by their names in the API."""
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def system(self) -> str | None:
        """The text of the system's message."""
        return str(self.messages[0].get("content")) if self._has_system else None

    @system.setter
    def system(self, text: str | None) -> None:
        others = self.messages[self._has_system :]
        self.messages = ([] if text is None else [{"role": "system", "content": text}]) + others

    @property
    def has_question(self) -> bool:
        """Whether the last message waits for an answer."""
        return bool(self.messages) and self.messages[-1]["role"] == "user"

    def ask(self, text: str) -> None:
        """Add a question, in the place of one that was not answered."""
        if self.has_question:
            self.messages.pop()
        self.messages.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        """Add what was answered, all of it or a part."""
        self.messages.append({"role": "assistant", "content": text})

    def reopen(self) -> bool:
        """Forget the last answer, so that its question can be asked again; whether there is a question."""
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        return self.has_question

    def undo(self) -> bool:
        """Forget the last question and its answer; whether there was one."""
        there = self.reopen()
        if there:
            self.messages.pop()
        return there

    def clear(self) -> None:
        """Forget everything but the system's message."""
        del self.messages[self._has_system :]

    def body(self) -> dict[str, Any]:
        """A request for the next answer."""
        return {"model": self.model, **self.parameters, "messages": self.messages}

    def save(self, path: Path) -> None:
        """Write it as the body of a request, readable by its owner alone; raises `ConfigError`."""
        text = json.dumps(self.body(), ensure_ascii=False, indent=2) + "\n"
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from None

    def load(self, path: Path) -> None:
        """Take messages and parameters from a file that `save` wrote, or from a list of messages; the model stays.

        Raises `ConfigError`, and changes nothing then.
        """
        try:
            content = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except ValueError:
            raise ConfigError(f"{path} is no JSON") from None
        body = {"messages": content} if isinstance(content, list) else content
        messages = body.get("messages") if isinstance(body, dict) else None
        if not isinstance(messages, list) or not all(
            isinstance(each, dict) and isinstance(each.get("role"), str) for each in messages
        ):
            raise ConfigError(f"{path} holds no conversation: expected messages with a role and a content each")
        self.messages = messages
        if isinstance(content, dict):
            self.parameters = {name: value for name, value in body.items() if name not in ("model", "messages")}

    @property
    def _has_system(self) -> bool:
        return bool(self.messages) and self.messages[0]["role"] in ("system", "developer")
