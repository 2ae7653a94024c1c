"""What a client may not do, tried on a running server with raw bytes."""

import asyncio
import json
import time

from uvicorn import Config
from uvicorn.server import ServerState

from arriero.cli import server
from arriero.cli.protocol import Connection, Timeouts
from arriero.config import Settings

TIMEOUTS = ("--head-timeout", "0.5", "--body-timeout", "0.5", "--idle-timeout", "1")
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = json.dumps({"model": "scripted", "prompt": "hello", "max_tokens": 4}).encode()
WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
CHUNK = b"%x\r\n%s\r\n" % (len(BODY), BODY)

SMUGGLING = {
    "length and chunks": HEAD + b"content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nX",
    "chunks and length": HEAD + b"transfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n0\r\n\r\nX",
    "two lengths": HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    "two lengths in one": HEAD + b"content-length: 5, 6\r\n\r\nhello!",
    "signed length": HEAD + b"content-length: +5\r\n\r\nhello",
    "hexadecimal length": HEAD + b"content-length: 0x5\r\n\r\nhello",
    "endless length": HEAD + b"content-length: 99999999999999999999999\r\n\r\nhello",
    "chunk size that is none": HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "signed chunk size": HEAD + b"transfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    "prefixed chunk size": HEAD + b"transfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "endless chunk size": HEAD + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "chunk longer than it says": HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n",
    "chunk with bare line feeds": HEAD + b"transfer-encoding: chunked\r\n\r\n5\nhello\n0\n\n",
    "coding that is not the last": HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "coding that nobody knows": HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "folded header": HEAD + b"x-long: a\r\n b\r\ncontent-length: 0\r\n\r\n",
    "folded coding": HEAD + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "blank before the colon": HEAD + b"content-length : 5\r\n\r\nhello",
    "blank before the name": b"GET /health HTTP/1.1\r\n host: x\r\n\r\n",
    "null in a header": HEAD + b"x-null: a\0b\r\n\r\n",
    "carriage return in a header": HEAD + b"x-return: a\rcontent-length: 5\r\n\r\nhello",
    "header without a colon": HEAD + b"content-length\r\n\r\n",
    "two lengths that are the same": HEAD + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    "two codings": HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding behind a control character": HEAD + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "lines that end with bare line feeds": (HEAD + b"content-length: 5\r\n\r\n").replace(b"\r\n", b"\n") + b"hello",
    "lines that end with bare returns": (HEAD + b"content-length: 5\r\n\r\n").replace(b"\r\n", b"\r") + b"hello",
    "bare line feed in a header": HEAD + b"x-feed: a\ncontent-length: 5\r\n\r\nhello",
    "bare line feed before the body": HEAD + b"content-length: 5\r\n\nhello",
    "line feed in a chunk's extension": HEAD + b"transfer-encoding: chunked\r\n\r\n5;a=\nb\r\nhello\r\n0\r\n\r\n",
    "blank behind a chunk size": HEAD + b"transfer-encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n",
    "length that is empty": HEAD + b"content-length: \r\n\r\n",
    "two hosts": HEAD + b"host: y\r\ncontent-length: 0\r\n\r\n",
    "no host": b"GET /health/live HTTP/1.1\r\n\r\n",
    "a tunnel": b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nhost: x\r\n\r\n",
    "target without a host": b"GET http:///x HTTP/1.1\r\nhost: x\r\n\r\n",
    "target with a port that is none": b"GET http://x:99999999/ HTTP/1.1\r\nhost: x\r\n\r\n",
    "another version": b"GET /health/live HTTP/1.2\r\nhost: x\r\n\r\n",
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "head without an end": b"GET / HTTP/1.1\r\n" + b"x-more: and more\r\n" * 10_000,
    "path without an end": b"GET /" + b"x" * 200_000,
}


async def exchange(port: int, request: bytes) -> bytes:
    """Everything that the server says until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionResetError:  # it closes with bytes of ours unread
        return b""
    finally:
        writer.close()


async def test_the_bounds_of_http_are_held(serve):
    """All on one server: it takes long to start."""
    async with serve(*TIMEOUTS) as server:
        port = int(server.url.rpartition(":")[2])
        refused = await asyncio.gather(*(exchange(port, each) for each in SMUGGLING.values()))
        for name, answer in zip(SMUGGLING, refused, strict=True):
            assert answer.count(b"HTTP/1.1") <= 1, name
            if len(SMUGGLING[name]) < 10_000:  # else some of it was not read, and the answer may be lost with it
                assert answer, name
            assert not answer or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ")), (name, answer)
            assert b"connection: close" in answer or not answer, name
        await slow_clients_are_left(port)
        await what_is_well_formed_is_answered(port)


async def slow_clients_are_left(port: int) -> None:
    silent, head, body, chunks, idle = await asyncio.gather(
        *(
            exchange(port, request)
            for request in (
                b"",
                HEAD,
                HEAD + b"content-length: 100\r\n\r\n{",
                HEAD + b"transfer-encoding: chunked\r\n\r\n" + CHUNK,
                WHOLE,
            )
        )
    )
    for answer in (silent, head, body, chunks):
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n"), answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    assert idle.startswith(b"HTTP/1.1 200 OK\r\n")
    assert idle.count(b"HTTP/1.1") == 1


async def what_is_well_formed_is_answered(port: int) -> None:
    trailers = HEAD + b"transfer-encoding: chunked\r\n\r\n" + CHUNK + b"0\r\nx-late: 1\r\n\r\n"
    for request in (WHOLE + WHOLE, trailers + WHOLE):
        assert (await exchange(port, request)).count(b"HTTP/1.1 200 OK\r\n") == 2
    endless = HEAD + b"transfer-encoding: chunked\r\n\r\n" + CHUNK + b"0\r\n" + b"x-late: 1\r\n" * 20_000
    assert b"HTTP/1.1" not in await exchange(port, endless)


class Pipe(asyncio.Transport):
    """A transport to nobody."""

    aborted = False

    def abort(self) -> None:
        self.aborted = True

    def write(self, data: bytes) -> None:
        pass


async def test_one_that_takes_nothing_of_its_answer_is_left() -> None:
    connection = Connection(Config(nothing, http=Connection, ws="none", lifespan="off"), ServerState(), {})
    pipe = Pipe()
    connection.connection_made(pipe)
    connection.data_received(WHOLE[: -len(BODY)])
    timeouts = Timeouts(head=9000, body=9000, send=10)
    connection.pause_writing()
    connection.check(time.monotonic() + 9, timeouts)
    connection.resume_writing()
    connection.check(time.monotonic() + 11, timeouts)
    assert not pipe.aborted, "it took some of it"
    connection.pause_writing()
    connection.check(time.monotonic() + 11, timeouts)
    assert pipe.aborted


async def nothing(scope: object, receive: object, send: object) -> None:
    """An application that is not reached."""


async def test_memory_is_given_back_once_after_work_and_a_rest(monkeypatch):
    gave, give = [], server._give_back_memory
    monkeypatch.setattr(server, "_give_back_memory", lambda: gave.append(give()))
    serving = server.Server(None, Settings(), drain=None)
    serving.config.encoded_headers = []

    async def look(*, busy: bool, times: int) -> None:
        serving.server_state.tasks = {None} if busy else set()
        for _ in range(times):
            await serving.on_tick(0)

    await look(busy=False, times=5)
    await look(busy=True, times=5)
    await look(busy=False, times=2)
    await look(busy=True, times=1)
    assert not gave
    await look(busy=False, times=9)
    assert len(gave) == 1
