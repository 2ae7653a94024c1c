"""Endpoints as they are out there: each answers what it was told to, byte for byte."""

import asyncio
import json
from contextlib import aclosing, asynccontextmanager, suppress

import pytest

from arriero.cli.remote import Nobody, Piece, Refused, Remote
from arriero.errors import ConfigError, UpstreamError

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


class Canned:
    """Answers with the next of some texts, and keeps what was asked."""

    def __init__(self, *answers):
        self._answers = list(answers)
        self.requests = []
        self.left = asyncio.Event()
        self.tasks = []

    async def __call__(self, reader, writer):
        self.tasks.append(asyncio.current_task())
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(line.split(":")[1]) for line in head.splitlines() if line.startswith("content-length")), 0)
        self.requests.append((head, await reader.readexactly(length)))
        for piece in self._answers.pop(0):
            writer.write(piece)
            await asyncio.sleep(0.001)
        if not self._answers:
            with suppress(ConnectionError):
                await reader.read()
            self.left.set()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    @property
    def bodies(self):
        return [json.loads(body) for _, body in self.requests]


@asynccontextmanager
async def remote_of(canned, **options):
    async with await asyncio.start_server(canned, "127.0.0.1") as server:
        host, port = server.sockets[0].getsockname()
        remote = Remote(f"{host}:{port}", **options)
        try:
            yield remote
        finally:
            await remote.close()
            async with asyncio.timeout(5):
                await asyncio.gather(*canned.tasks)


def stream(*events, kind="text/event-stream"):
    """A body that goes on until its connection ends, as pieces."""
    return [f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n\r\n".encode(), *events]


def whole(status, body):
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return [b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(text), text)]


def data(**delta):
    return b"data: " + json.dumps({"choices": [{"delta": delta}]}, ensure_ascii=False).encode()


async def pieces(remote):
    return [piece async for piece in remote.answer(BODY)]


async def test_a_stream_may_be_cut_anywhere_and_end_its_lines_as_it_likes():
    long = data(content="Grüße") + b"\r\n\r\n: still working\n\n" + data(reasoning_content="Hm") + b"\rdata:[DONE]\n"
    canned = Canned(stream(*(long[place : place + 1] for place in range(len(long)))))
    async with remote_of(canned) as remote:
        assert await pieces(remote) == [Piece(text="Grüße"), Piece(reasoning="Hm")]
    assert canned.bodies == [{**BODY, "stream": True, "stream_options": {"include_usage": True}}]


async def test_the_end_and_the_usage_of_an_answer_are_told():
    last = {"choices": [{"delta": {}, "finish_reason": "length"}]}
    usage = {"choices": [], "usage": {"completion_tokens": 3}}
    events = b"".join(b"data: %s\n\n" % json.dumps(each).encode() for each in (last, usage))
    async with remote_of(Canned(stream(events + b"data: [DONE]\n\n"))) as remote:
        assert await pieces(remote) == [Piece(finish_reason="length"), Piece(usage={"completion_tokens": 3})]


async def test_a_server_that_does_not_stream_answers_in_one_piece():
    message = {"content": "Hello", "reasoning": "Hm"}
    canned = Canned(whole(200, {"choices": [{"message": message, "finish_reason": "stop"}]}))
    async with remote_of(canned) as remote:
        assert await pieces(remote) == [Piece(text="Hello", reasoning="Hm", finish_reason="stop")]


async def test_a_server_that_does_not_know_usage_of_streams_is_not_asked_for_it():
    refusal = whole(400, {"error": {"message": "unknown parameter stream_options"}})
    canned = Canned(refusal, stream(data(content="A") + b"\n\ndata: [DONE]\n"), stream(b"data: [DONE]\n"))
    async with remote_of(canned) as remote:
        assert await pieces(remote) == [Piece(text="A")]
        assert await pieces(remote) == []
    assert ["stream_options" in body for body in canned.bodies] == [True, False, False]


async def test_a_server_that_asks_for_a_key_is_told_how_to_get_one():
    async with remote_of(Canned(whole(401, {"error": {"message": "No key."}}))) as remote:
        with pytest.raises(Refused, match=r"asks for a key.*--api-key.*ARRIERO_API_KEY.*No key\.") as error:
            await pieces(remote)
    assert error.value.status == 401


async def test_a_key_is_shown(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-2")
    for options, shown in (({"key": "sk-1"}, "Bearer sk-1"), ({"key_env": "SOME_KEY"}, "Bearer sk-2")):
        canned = Canned(whole(401, {"error": {"message": "Wrong."}}))
        async with remote_of(canned, **options) as remote:
            with pytest.raises(Refused, match=r"answered 401: Wrong\."):
                await remote.models()
        assert f"authorization: {shown}" in canned.requests[0][0]


async def test_what_went_wrong_amid_an_answer_is_told_after_what_came():
    error = b'data: {"error": {"message": "The engine died."}}\n\n'
    async with remote_of(Canned(stream(data(content="A") + b"\n\n" + error))) as remote:
        answer = remote.answer(BODY)
        assert (await anext(answer)).text == "A"
        with pytest.raises(UpstreamError, match=r"broke off: The engine died\."):
            await anext(answer)


async def test_an_answer_that_is_left_ends_its_connection():
    canned = Canned(stream(data(content="A") + b"\n\n"))
    async with remote_of(canned) as remote:
        async with aclosing(remote.answer(BODY)) as answer:
            assert (await anext(answer)).text == "A"
        async with asyncio.timeout(5):
            await canned.left.wait()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (stream(b"data: oops\n"), "no JSON: oops"),
        (stream(b"data: [1]\n"), "no answer"),
        (stream(b"<html>", kind="text/html"), "no JSON: <html>"),
        (whole(502, b"<html>\nBad Gateway"), "answered 502: <html> Bad Gateway"),
        (whole(500, b""), "answered 500: nothing more is said"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"], "broke off its answer"),
        ([b"220 smtp.example.org ESMTP\r\n"], "did not answer in HTTP"),
    ],
)
async def test_what_is_no_answer_is_one_sentence(answer, message):
    async with remote_of(Canned(answer, [])) as remote:
        with pytest.raises(UpstreamError, match=message) as error:
            await pieces(remote)
    assert "\n" not in str(error.value)


async def test_models_are_listed_and_those_that_cannot_chat_are_known():
    listed = {"data": [{"id": "e", "capabilities": ["embedding"]}, {"id": "c", "capabilities": ["chat"]}, {"id": "x"}]}
    async with remote_of(Canned(whole(200, listed), whole(200, listed), whole(200, {"models": []}))) as remote:
        assert await remote.models() == ["e", "c", "x"]
        assert await remote.models("chat") == ["c", "x"]
        with pytest.raises(UpstreamError, match="no list of models"):
            await remote.models()


async def test_nobody_is_told_apart():
    with pytest.raises(Nobody, match="could not be reached"):
        await Remote("http://127.0.0.1:1/v1").models()


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port/v1", "http://key@host/v1"])
def test_what_is_no_address_is_one_sentence(url):
    with pytest.raises(ConfigError, match=url):
        Remote(url)


def test_what_is_no_key_is_not_repeated():
    with pytest.raises(ConfigError, match="the key is no key") as error:
        Remote("http://host", key="s e c")
    assert "s e c" not in str(error.value)
