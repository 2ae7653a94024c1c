import asyncio
import json
import re
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest

from arriero.cli.chat.answering import Screen
from arriero.cli.chat.command import choose
from arriero.cli.remote import Piece

# Input and output of a program become a terminal's, control characters included.
IN_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
PROMPT = "\n> "


class Talk:
    """A chat in a terminal, as somebody types and reads."""

    def __init__(self, process):
        self._process = process
        self._unread = ""

    async def read(self, until=PROMPT):
        """What is shown next, up to and with `until`; escape sequences left out."""
        async with asyncio.timeout(20):
            while until not in self._unread:
                data = await self._process.stdout.read(4096)
                assert data, self._unread
                text = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", data.decode())
                self._unread = (self._unread + text).replace("\r\n", "\n").replace("\r", "")
        shown, _, self._unread = self._unread.partition(until)
        return shown

    def type(self, text):
        self._process.stdin.write(text.encode())

    async def say(self, text, until=PROMPT):
        """Type a line; what is shown after it."""
        self.type(text + "\n")
        shown = await self.read(until) + "\n"
        before, echo, after = shown.partition(text.rpartition("\n")[2] + "\n")
        return (after if echo else before).removesuffix("\n")

    async def end(self):
        async with asyncio.timeout(20):
            rest = (await self._process.stdout.read()).decode()
            return await self._process.wait(), self._unread + rest


@pytest.fixture
def talk(monkeypatch, tmp_path):
    @asynccontextmanager
    async def launch(*arguments):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", IN_TERMINAL, sys.executable, "-m", "arriero", "chat", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=tmp_path,
        )
        try:
            yield Talk(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    return launch


async def piped(url, text, *arguments):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "arriero", "chat", "--url", url, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate(text.encode())
    return process.returncode, stdout.decode(), stderr.decode()


async def test_a_pipe_gets_the_answer_and_nothing_else(go_live):
    live = go_live(script=[{"match": "two\nlines", "reply": "Yes."}])
    assert await piped(live.url, "two\nlines\n", "--system", "Be brief.", "--max-tokens", "9") == (0, "Yes.\n", "")
    status, stdout, stderr = await piped(live.url, "hi", "--model", "other")
    assert (status, stdout) == (1, "")
    assert re.fullmatch(r"arriero: http\S+ answered 404: The model 'other' does not exist.*\n", stderr)


async def test_what_has_no_effect_is_told_once(go_live, talk, tmp_path):
    live = go_live()
    async with talk("--url", live.url) as chat:
        await chat.read()
        await chat.say("/set user somebody")
        await chat.say('/set metadata {"a,b": "c"}')
        assert await chat.say("hello") == "hello\n(no effect on this server: user, metadata)"
        assert await chat.say("again") == "again"
        await chat.say("/set metadata")
        assert await chat.say("more") == "more\n(no effect on this server: user)"
        await chat.say("/save talk.json")
        chat.type("\x04")
        await chat.end()
    told = "(no effect on this server: user)\n"
    assert await piped(live.url, "hi", "--load", str(tmp_path / "talk.json")) == (0, "hi\n", told)


async def test_a_conversation_in_a_terminal(go_live, talk, tmp_path):
    file = tmp_path / "talk.json"
    live = go_live(model_name="tiny")
    async with talk("--url", live.url, "--temperature", "0.5") as chat:
        assert await chat.read() == f"tiny at {live.url}/v1. /help lists the commands, Ctrl-D leaves."
        assert "/system [TEXT]" in await chat.say("/help")
        assert await chat.say("hello") == "hello"
        assert await chat.say('"""one\ntwo"""') == "one\ntwo"
        assert await chat.say("three\\\nfour") == "three\nfour"
        assert (await chat.say("\x1b[200~five\nsix\x1b[201~")).endswith("\nsix\nfive\nsix")  # first what was pasted
        assert await chat.say("//slash") == "/slash"
        assert (
            await chat.say("/slash") == "there is no command /slash: /help lists them, // begins a message with a slash"
        )
        assert await chat.say("/undo") == "8 messages are left."
        assert await chat.say("/system Be brief.") == ""
        assert await chat.say("/set") == "temperature 0.5"
        assert await chat.say("/set temperature") == "All parameters are the server's own."
        assert await chat.say("/set max_tokens 3") == "max_tokens 3"
        assert await chat.say("/set n 2") == "n is not for /set"
        assert await chat.say("/retry") == "fiv\n(ended by length)"
        assert await chat.say("/save talk.json") == "9 messages are in talk.json."
        assert re.match(r"\d+ tokens were read and \d+ written", await chat.say("/usage"))
        assert await chat.say("/models") == "* tiny"
        assert await chat.say("/model other") == "other"
        assert "The model 'other' does not exist" in await chat.say("hi")
        assert await chat.say("/model tiny") == "tiny"
        await chat.say("/clear")
        assert await chat.say("/undo") == "there is nothing to forget"
        assert await chat.say("/load talk.json") == "9 messages came from talk.json."
        assert await chat.say("/load") == "the name of a file is missing"
        chat.type("/sa\t")
        await chat.read("/save ")
        chat.type("\x03")
        assert (await chat.read()).endswith("Ctrl-C again or Ctrl-D leaves.")
        chat.type("\x03")
        assert (await chat.end())[0] == 0
    saved = json.loads(file.read_text())
    assert (saved["model"], saved["max_tokens"]) == ("tiny", 3)
    assert [each["content"] for each in saved["messages"]] == [
        *("Be brief.", "hello", "hello", "one\ntwo", "one\ntwo"),
        *("three\nfour", "three\nfour", "five\nsix", "fiv"),
    ]
    history = tmp_path / "state" / "arriero" / "chat_history"
    assert "hello" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600


async def test_an_answer_is_stopped_and_what_came_of_it_is_kept(go_live, talk, tmp_path):
    file = tmp_path / "talk.json"
    live = go_live(pace=50, script=[{"reply": "one two " * 1000}])
    async with talk("--url", live.url) as chat:
        await chat.read()
        chat.type("count\n")
        await chat.read("two one")
        chat.type("\x03")
        assert (await chat.read()).endswith("\n(stopped)")
        await live.until(lambda stats: stats.running == 0)
        await chat.say("/save talk.json")
        chat.type("\x04")
        status, _ = await chat.end()
    assert status == 0
    kept = json.loads(file.read_text())["messages"][1]["content"]
    assert "one two ".startswith(kept[:8])
    assert len(kept) < 8000


async def test_a_signal_ends_an_answer_in_a_pipe(go_live):
    live = go_live(pace=50, script=[{"reply": "one two " * 1000}])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "arriero", "chat", "--url", live.url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    process.stdin.write(b"count")
    process.stdin.close()
    await process.stdout.readexactly(8)
    process.send_signal(signal.SIGINT)
    await process.stdout.read()
    assert await process.wait() == 130
    await live.until(lambda stats: stats.running == 0)


def test_who_reads_may_have_seen_enough(go_live):
    live = go_live(pace=200, script=[{"reply": "one two " * 1000}])
    command = [sys.executable, "-m", "arriero", "chat", "--url", live.url]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        process.stdin.write(b"count")
        process.stdin.close()
        assert process.stdout.read(8) == b"one two "
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (1, b"")


async def test_a_server_that_is_loading_is_waited_for(capsys):
    class Loading:
        url = "http://server/v1"
        states = ["loading", "loading", "ready"]  # noqa: RUF012

        async def health(self, route):
            return {"status": self.states.pop(0)}

        async def models(self, capability):
            assert not self.states
            return ["tiny"]

    assert await choose(Loading(), "") == "tiny"
    assert capsys.readouterr().err == "http://server/v1 is loading its model.\n"


def test_where_nobody_listens_the_command_that_helps_is_told(call):
    finished = call("chat", "org/tiny", ARRIERO_PORT="1", ARRIERO_HOST="0.0.0.0")
    assert (finished.status, finished.stdout) == (1, "")
    assert finished.stderr == (
        "arriero: the server http://127.0.0.1:1/v1 could not be reached: "
        "start one with arriero serve org/tiny, or name another with --url\n"
    )


def test_a_model_is_named_once(call):
    finished = call("chat", "one", "--model", "two")
    assert finished.status == 2
    assert "give the model once" in finished.stderr


def test_thoughts_are_shown_apart_and_only_to_people(capsys):
    pieces = [Piece(reasoning="Hm\x1b[2J"), Piece(reasoning=" hm"), Piece(text="Yes\x07.")]
    for terminal, colours, shown in (
        (True, False, "Thinking: Hm[2J hm\n\nYes.\n"),
        (True, True, "\x1b[2mThinking: Hm[2J hm\x1b[0m\n\nYes.\n"),
        (False, False, "Yes\x07.\n"),
    ):
        screen = Screen(terminal=terminal, colours=colours)
        for piece in pieces:
            screen.show(piece)
        screen.end()
        assert capsys.readouterr().out == shown
