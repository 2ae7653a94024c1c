"""The terminal's side of a conversation: lines with editing and history, and commands that begin with a slash."""

from __future__ import annotations

import asyncio
import glob
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs

from arriero.cli.chat.answering import Answer, Screen, ask, without_effect
from arriero.cli.chat.conversation import Conversation
from arriero.cli.output import harmless
from arriero.cli.remote import Remote
from arriero.errors import ArrieroError, ConfigError

_BLOCK = '"""'
_HISTORY_LENGTH = 1000
_FIXED = ("model", "messages", "stream", "stream_options", "n")
"""Parts of a request that /set leaves alone."""
_HELP = """\
  /system [TEXT]         show the system prompt, or set it; /system - removes it
  /model NAME            ask another model from now on
  /models                list the server's models
  /set [NAME [VALUE]]    show the parameters, or set one, such as /set temperature 0.2; without VALUE: the server's own
  /retry                 ask the last question again
  /undo                  forget the last question and its answer
  /clear                 forget everything but the system prompt
  /save FILE             write the conversation as JSON, the body of a request to /v1/chat/completions
  /load FILE             go on with a conversation that was saved
  /usage                 tell how many tokens were used, and how fast they came
  /quit                  leave, as Ctrl-D and Ctrl-C twice do

  \"\"\" begins and ends a message of several lines, a \\ at the end of a line continues it, and a text that is pasted
  stays one message. // begins a message that begins with a slash. Ctrl-C stops an answer; what came of it is kept."""


class Terminal:
    """Reads questions and commands until somebody leaves."""

    def __init__(self, remote: Remote, conversation: Conversation, runner: asyncio.Runner) -> None:
        self._remote = remote
        self._conversation = conversation
        self._runner = runner
        self._screen = Screen(terminal=True, colours="NO_COLOR" not in os.environ)
        self._last: Answer | None = None
        self._tokens = {"prompt_tokens": 0, "completion_tokens": 0}
        self._commands: dict[str, Callable[[str], None]] = {
            name.removeprefix("_do_"): getattr(self, name) for name in dir(self) if name.startswith("_do_")
        }

    def run(self) -> None:
        """Talk until /quit, Ctrl-D, or Ctrl-C twice."""
        print(f"{harmless(self._conversation.model)} at {self._remote.url}. /help lists the commands, Ctrl-D leaves.")
        with _History(self._complete):
            interrupted = False
            while True:
                try:
                    text = _read()
                    interrupted = False
                    self._take(text)
                except EOFError:
                    print()
                    return
                except _Quit:
                    return
                except KeyboardInterrupt:
                    print()
                    if interrupted:
                        return
                    print("Ctrl-C again or Ctrl-D leaves.")
                    interrupted = True
                except ArrieroError as error:
                    print(harmless(str(error)), file=sys.stderr)

    def _take(self, text: str) -> None:
        if not text.strip():
            return
        if text.startswith("/") and not text.startswith("//"):
            name, _, rest = text[1:].partition(" ")
            command = self._commands.get({"exit": "quit"}.get(name, name))
            if command is None:
                raise ConfigError(f"there is no command /{name}: /help lists them, // begins a message with a slash")
            command(rest.strip())
            return
        self._conversation.ask(text[1:] if text.startswith("//") else text)
        self._answer()

    def _answer(self) -> None:
        answer = self._runner.run(ask(self._remote, self._conversation, self._screen))
        ignored_before = self._last.ignored if self._last else ()
        self._last = answer
        for name in self._tokens:
            number = answer.usage.get(name)
            self._tokens[name] += number if isinstance(number, int) else 0
        if answer.text:
            self._conversation.answer(answer.text)
        if answer.failure:
            print(harmless(answer.failure), file=sys.stderr)
        elif answer.stopped:
            print("(stopped)")
        elif answer.finish_reason not in ("stop", None):
            print(f"(ended by {answer.finish_reason})")
        if answer.ignored and answer.ignored != ignored_before:
            print(without_effect(answer.ignored))

    # The commands, each with what follows its name.

    def _do_help(self, rest: str) -> None:
        print(_HELP)

    def _do_system(self, rest: str) -> None:
        if rest:
            self._conversation.system = None if rest == "-" else rest
        else:
            print(self._conversation.system or "There is no system prompt.")

    def _do_model(self, rest: str) -> None:
        if rest:
            self._conversation.model = rest
        print(self._conversation.model)

    def _do_models(self, rest: str) -> None:
        for name in self._runner.run(self._remote.models()):
            print(f"{'*' if name == self._conversation.model else ' '} {harmless(name)}")

    def _do_set(self, rest: str) -> None:
        parameters = self._conversation.parameters
        name, _, value = rest.partition(" ")
        if name in _FIXED:
            raise ConfigError(f"{name} is not for /set")
        if value.strip():
            parameters[name] = _value(value.strip())
        elif name:
            parameters.pop(name, None)
        for name, known in parameters.items():
            print(f"{name} {json.dumps(known, ensure_ascii=False)}")
        if not parameters:
            print("All parameters are the server's own.")

    def _do_retry(self, rest: str) -> None:
        if not self._conversation.reopen():
            raise ConfigError("there is no question to ask again")
        self._answer()

    def _do_undo(self, rest: str) -> None:
        if not self._conversation.undo():
            raise ConfigError("there is nothing to forget")
        print(f"{len(self._conversation.messages)} messages are left.")

    def _do_clear(self, rest: str) -> None:
        self._conversation.clear()

    def _do_save(self, rest: str) -> None:
        self._conversation.save(_path(rest))
        print(f"{len(self._conversation.messages)} messages are in {rest}.")

    def _do_load(self, rest: str) -> None:
        self._conversation.load(_path(rest))
        print(f"{len(self._conversation.messages)} messages came from {rest}.")

    def _do_usage(self, rest: str) -> None:
        prompt, completion = self._tokens.values()
        print(f"{prompt:,} tokens were read and {completion:,} written in this chat, as far as the server told.")
        last = self._last
        if last is None or last.first is None:
            return
        written = last.usage.get("completion_tokens")
        speed = ""
        if isinstance(written, int) and written > 1 and last.seconds > last.first:
            speed = f", then {(written - 1) / (last.seconds - last.first):.1f} tokens came a second"
        print(f"The last answer began after {last.first:.2f} s{speed}.")

    def _do_quit(self, rest: str) -> None:
        raise _Quit

    def _complete(self, text: str, line: str) -> list[str]:
        """What may stand for the last word of a line."""
        command, blank, _ = line.partition(" ")
        if not blank and command.startswith("/"):
            return [f"/{name} " for name in sorted(self._commands) if f"/{name}".startswith(command)]
        if command in ("/save", "/load"):
            paths = glob.glob(glob.escape(os.path.expanduser(text)) + "*")
            return sorted(path + "/" if os.path.isdir(path) else path for path in paths)
        return []


class _Quit(Exception):
    """Somebody wants to leave."""


class _History:
    """Line editing, while the block lasts: completion, pasting as one, and the lines of earlier conversations."""

    def __init__(self, complete: Callable[[str, str], list[str]]) -> None:
        self._complete = complete
        self._file = platformdirs.user_state_path("arriero") / "chat_history"

    def __enter__(self) -> None:
        try:
            import readline
        except ImportError:  # not on every system
            return
        if "libedit" in (readline.__doc__ or ""):
            readline.parse_and_bind("bind ^I rl_complete")
        else:
            readline.parse_and_bind("tab: complete")
            readline.parse_and_bind("set enable-bracketed-paste on")
        readline.set_completer_delims(" ")
        readline.set_completer(self._offer)
        readline.set_history_length(_HISTORY_LENGTH)
        with suppress(OSError):  # There is none yet, or it is not ours to read.
            readline.read_history_file(self._file)

    def __exit__(self, *_: object) -> None:
        with suppress(ImportError, OSError):  # What cannot be kept is no reason to fail.
            import readline

            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.touch(mode=0o600)
            readline.write_history_file(self._file)

    def _offer(self, text: str, state: int) -> str | None:
        import readline

        found = self._complete(text, readline.get_line_buffer())
        return found[state] if state < len(found) else None


def _read() -> str:
    """A message or command, of one line or several."""
    text = input("> ")
    if text.lstrip().startswith(_BLOCK):
        text = text.lstrip().removeprefix(_BLOCK)
        while not text.rstrip().endswith(_BLOCK):
            text += "\n" + input(". ")
        text = text.rstrip().removesuffix(_BLOCK).strip("\n")
    else:
        while text.endswith("\\"):
            text = text[:-1] + "\n" + input(". ")
    return text.encode("utf-8", "replace").decode()  # A terminal may send what is no text.


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _path(text: str) -> Path:
    if not text:
        raise ConfigError("the name of a file is missing")
    return Path(text).expanduser()
