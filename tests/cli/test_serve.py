import asyncio
import json
import os
import shlex
import signal
import socket
from contextlib import ExitStack, suppress

import httpx
import pytest

from tiny_directory import write_directory

TEXT = "one two three four five six seven eight nine ten"


def chat(text: str, **others: object) -> dict[str, object]:
    return {"model": "scripted", "messages": [{"role": "user", "content": text}], **others}


def joined(lines: list[str]) -> str:
    """The text of a stream's lines."""
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event.get("choices", ()))


async def test_ready_lines_name_the_address_and_a_command_that_works(serve):
    async with serve("--model-name", 'it\'s a "name"') as server:
        arguments = shlex.split(server.curl)
        assert arguments[0] == "curl"
        process = await asyncio.create_subprocess_exec(
            *arguments, "--silent", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        answer = json.loads((await process.communicate())[0])
    assert answer["model"] == 'it\'s a "name"'
    assert answer["choices"][0]["message"]["content"] == "Tell me a joke."


async def test_settings_reach_the_server_from_file_variable_and_flag(serve, tmp_path):
    file = tmp_path / "arriero.toml"
    file.write_text('model_name = "from-file"\nslots = 3\nbody_limit = "1KiB"\n')
    async with (
        serve("--config", str(file), "--slots", "5", ARRIERO_MODEL_NAME="from-variable") as server,
        httpx.AsyncClient() as client,
    ):
        models = (await client.get(f"{server.url}/v1/models")).json()
        health = (await client.get(f"{server.url}/health")).json()
        too_big = await client.post(f"{server.url}/v1/chat/completions", json=chat("x" * 2000))
    assert models["data"][0]["id"] == "from-variable"
    assert health["models"]["from-variable"]["num_slots"] == 5
    assert too_big.status_code == 413


async def test_every_request_has_a_line_of_the_log_that_tells_nothing_of_its_words(serve):
    async with serve("--log-format", "json") as server, httpx.AsyncClient() as client:
        headers = {"x-request-id": "mine", "user-agent": "secret"}
        await client.post(f"{server.url}/v1/chat/completions", json=chat("secret"), headers=headers)
        await client.get(f"{server.url}/no/such%0apath?secret")
        await client.get(f"{server.url}/health")
        server.process.send_signal(signal.SIGTERM)
        finished = await server.end()
    assert "secret" not in finished.stderr
    first, second = map(json.loads, finished.stderr.splitlines())
    assert first["ms"] >= first["first_token_ms"] > 0
    shown = {
        "message",
        "level",
        "id",
        "method",
        "route",
        "model",
        "status",
        "prompt_tokens",
        "completion_tokens",
        "client",
    }
    assert {name: first[name] for name in sorted(shown)} == {
        "client": "127.0.0.1",
        "completion_tokens": len("secret!"),
        "id": "mine",
        "level": "info",
        "message": "request",
        "method": "POST",
        "model": "scripted",
        "prompt_tokens": 25,
        "route": "/v1/chat/completions",
        "status": 200,
    }
    assert (second["route"], second["status"], "model" in second) == ("/no/such%0apath", 404, False)


async def test_prompts_are_logged_where_that_is_wanted(serve):
    async with serve("--log-prompts") as server, httpx.AsyncClient() as client:
        await client.post(f"{server.url}/v1/chat/completions", json=chat("one\ntwo"))
        server.process.send_signal(signal.SIGTERM)
        finished = await server.end()
    assert finished.stderr.count("\n") == 1
    assert "one\\\\ntwo" in finished.stderr


async def test_nothing_but_the_ready_lines_is_printed(serve):
    async with serve("--log-level", "warning") as server, httpx.AsyncClient() as client:
        await client.post(f"{server.url}/v1/chat/completions", json=chat("hello"))
        server.process.send_signal(signal.SIGTERM)
        finished = await server.end()
    assert (finished.status, finished.stdout, finished.stderr) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_running_stream_finishes_when_the_server_is_told_to_stop(serve, number):
    async with serve("--pace", "50") as server, httpx.AsyncClient() as client:
        request = client.stream("POST", f"{server.url}/v1/chat/completions", json=chat(TEXT, stream=True))
        async with request as response:
            lines = []
            async for line in response.aiter_lines():
                if not lines:
                    server.process.send_signal(number)
                lines.append(line)
        finished = await server.end()
    assert joined(lines) == TEXT
    assert "data: [DONE]" in lines
    assert finished.status == 0
    assert "running answers may finish" in finished.stderr


async def test_new_requests_are_turned_away_while_the_last_answers_run(serve):
    async with serve("--pace", "20") as server, httpx.AsyncClient() as client:
        answer = asyncio.create_task(client.post(f"{server.url}/v1/chat/completions", json=chat(TEXT), timeout=30))
        await running(server.url)
        server.process.send_signal(signal.SIGTERM)
        await server.process.stderr.readline()  # It says that it waits.
        while (await client.get(f"{server.url}/health/ready")).status_code == 200:
            pass
        late = await client.post(f"{server.url}/v1/chat/completions", json=chat(TEXT))
        assert (await client.get(f"{server.url}/health/live")).status_code == 200
        assert (await answer).json()["choices"][0]["message"]["content"] == TEXT
        finished = await server.end()
    assert (late.status_code, late.headers["connection"], late.headers["retry-after"]) == (503, "close", "1")
    assert finished.status == 0


async def test_an_answer_longer_than_the_grace_period_ends_with_an_error_event_or_503(serve):
    async with serve("--pace", "2", "--grace", "0.2") as server, httpx.AsyncClient() as client:
        whole = asyncio.create_task(client.post(f"{server.url}/v1/chat/completions", json=chat(TEXT)))
        request = client.stream("POST", f"{server.url}/v1/chat/completions", json=chat(TEXT, stream=True))
        async with request as response:
            lines = []
            async for line in response.aiter_lines():
                if not lines:
                    server.process.send_signal(signal.SIGTERM)
                lines.append(line)
        finished = await server.end()
    assert TEXT.startswith(joined(lines))
    assert any(line.startswith('data: {"error"') for line in lines)
    assert (refused := await whole).json()["error"]["code"] == "overloaded"
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert finished.status == 0


async def test_a_second_signal_ends_the_server_at_once(serve):
    async with serve("--pace", "0.5") as server, httpx.AsyncClient() as client:
        request = client.stream("POST", f"{server.url}/v1/chat/completions", json=chat(TEXT, stream=True), timeout=60)
        async with request as response:
            lines = response.aiter_lines()
            await anext(lines)
            server.process.send_signal(signal.SIGINT)
            await server.process.stderr.readline()  # It says that it waits; the answer takes another 100 seconds.
            server.process.send_signal(signal.SIGINT)
            finished = await server.end()
            with pytest.raises(httpx.RemoteProtocolError):
                async for _ in lines:
                    pass
    assert finished.status == 0
    assert "Traceback" not in finished.stderr


async def test_a_client_that_holds_an_idle_connection_does_not_keep_the_server(serve):
    async with serve() as server, httpx.AsyncClient() as client:
        await client.get(f"{server.url}/health")
        server.process.send_signal(signal.SIGTERM)
        assert (await server.end()).status == 0


async def test_a_taken_port_is_told_before_anything_is_loaded(run):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        finished = await run("serve", "/no/such/model.gguf", "--port", str(port))
    assert (finished.status, finished.stdout) == (1, "")
    assert (
        finished.stderr
        == f"arriero: cannot listen on 127.0.0.1 port {port}: the port is taken, choose another with --port\n"
    )


async def test_the_alpaca_profile_listens_where_its_server_did(run):
    """On port 19327 of the loopback address, unless told otherwise; here it is taken, by us or by somebody else."""
    with ExitStack() as stack:
        with suppress(OSError):
            stack.enter_context(socket.create_server(("127.0.0.1", 19327)))
        finished = await run("serve", "--profile", "alpaca", "--engine", "scripted")
    assert finished.status == 1
    assert "cannot listen on 127.0.0.1 port 19327: the port is taken" in finished.stderr


async def test_the_alpaca_profile_answers_as_its_server_did(serve):
    async with serve("--profile", "alpaca") as server, httpx.AsyncClient() as client:
        answer = await client.post(f"{server.url}/v1/chat/completions", json={"messages": "hello"})
    body = answer.json()
    assert (body["model"], [each["index"] for each in body["choices"]]) == ("chinese-llama-alpaca", [0, 1])
    assert body["choices"][0] == {"index": 0, "message": {"role": "user", "content": "hello"}}
    assert body.keys() == {"id", "object", "created", "model", "choices"}


async def test_a_model_that_is_not_there_is_one_sentence(run):
    finished = await run("serve", "/no/such/model.gguf", "--port", "0")
    assert (finished.status, finished.stdout) == (1, "")
    assert finished.stderr.startswith("arriero: ")
    assert "/no/such/model.gguf" in finished.stderr
    assert finished.stderr.count("\n") == 1


async def test_who_comes_while_the_model_loads_waits(launch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    write_directory(tmp_path / "tiny")
    flags = ("--port", str(port), "--cache", str(tmp_path), "--engine", "onnx")  # nothing to compile
    async with launch("serve", str(tmp_path / "tiny"), *flags) as process, httpx.AsyncClient(timeout=60) as client:
        url = f"http://127.0.0.1:{port}"
        live = None
        while live is None:
            with suppress(httpx.ConnectError):
                live = await client.get(f"{url}/health/live")
        early = await client.post(f"{url}/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 2})
        assert (await client.get(f"{url}/health/ready")).status_code == 200
        process.send_signal(signal.SIGTERM)
        stdout, _ = await process.communicate()
    assert (live.status_code, early.status_code, process.returncode) == (200, 200, 0)
    assert stdout.decode().startswith(f"Serving tiny at {url}/v1 ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_while_it_loads_ends_it(launch, tmp_path, number):
    script = tmp_path / "script"
    os.mkfifo(script)
    async with launch("serve", "--engine", "scripted", "--script", str(script), "--port", "0") as process:
        with await asyncio.to_thread(script.open, "wb"):  # It is open once the server reads it, and waits for more.
            process.send_signal(number)
            stdout, stderr = await process.communicate()
    assert (process.returncode, stdout, stderr) == (0, b"", b"")


async def test_a_public_address_without_keys_is_warned_about(serve):
    async with serve("--host", "0.0.0.0", "--no-auth") as server:
        assert server.url.startswith("http://127.0.0.1:")
        server.process.send_signal(signal.SIGTERM)
        finished = await server.end()
    assert "Anyone who can reach 0.0.0.0 can use this server" in finished.stderr
    assert finished.status == 0


async def test_a_public_address_is_refused_without_keys(run, serve, tmp_path):
    store = ("--store", str(tmp_path / "arriero.db"))
    refused = await run("serve", "--engine", "scripted", "--host", "0.0.0.0", "--port", "0", *store)
    assert refused.status == 1
    assert "arriero keys create" in refused.stderr
    assert not (tmp_path / "arriero.db").exists()
    key = (await run("keys", "create", "alice", *store)).stdout.strip()
    async with serve("--host", "0.0.0.0", *store) as server, httpx.AsyncClient() as client:
        url = f"{server.url}/v1/models"
        assert (await client.get(url)).status_code == 401
        assert (await client.get(url, headers={"authorization": f"Bearer {key}"})).status_code == 200
        assert "Authorization: Bearer" in server.curl


async def test_ipv6_is_served(serve):
    async with serve("--host", "::1") as server, httpx.AsyncClient() as client:
        assert server.url.startswith("http://[::1]:")
        assert (await client.get(f"{server.url}/health")).status_code == 200


async def running(url: str) -> None:
    """Wait until the server works on an answer."""
    num_running = 0
    async with httpx.AsyncClient() as client:
        while not num_running:
            num_running = (await client.get(f"{url}/health")).json()["models"]["scripted"]["running"]
