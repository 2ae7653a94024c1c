"""Ways to reach a server other than a port of its own."""

import asyncio
import shlex
import signal
import socket
import ssl
from pathlib import Path

import httpx

CERTIFICATE = Path(__file__).parent / "certificate"  # of localhost, signed by itself, for a hundred years


async def test_https_is_served_and_proxies_that_are_trusted_say_who_asks(serve):
    files = ("--tls-certificate", str(CERTIFICATE / "certificate.pem"), "--tls-key", str(CERTIFICATE / "key.pem"))
    trusting = ssl.create_default_context(cafile=CERTIFICATE / "certificate.pem")
    async with (
        serve(*files, "--trusted-proxies", "127.0.0.0/8") as server,
        httpx.AsyncClient(verify=trusting) as client,
    ):
        assert server.url.startswith("https://127.0.0.1:")
        answer = await client.get(f"{server.url}/v1/models", headers={"x-forwarded-for": "192.0.2.1"})
        server.process.send_signal(signal.SIGTERM)
        finished = await server.end()
    assert answer.status_code == 200
    assert "client=192.0.2.1" in finished.stderr


async def test_proxies_are_not_trusted_unless_they_are_named(serve):
    async with serve() as server, httpx.AsyncClient() as client:
        await client.get(f"{server.url}/v1/models", headers={"x-forwarded-for": "192.0.2.1"})
        server.process.send_signal(signal.SIGTERM)
        assert "client=127.0.0.1" in (await server.end()).stderr


async def test_a_socket_file_is_served_and_removed(serve, tmp_path):
    path = tmp_path / "arriero socket"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))  # what a server that was killed leaves behind
    async with serve("--unix-socket", str(path)) as server:
        process = await asyncio.create_subprocess_exec(
            *shlex.split(server.curl), "--silent", stdout=asyncio.subprocess.PIPE
        )
        answer = (await process.communicate())[0]
        server.process.send_signal(signal.SIGTERM)
        finished = await server.end()
    assert b"Tell me a joke." in answer
    assert finished.status == 0
    assert not path.exists()


async def test_a_socket_file_in_use_and_another_file_are_left_alone(call, tmp_path):
    path = tmp_path / "arriero.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        finished = call("serve", "--engine", "scripted", "--unix-socket", str(path))
    assert (finished.status, path.is_socket()) == (1, True)
    assert finished.stderr == f"arriero: cannot listen on {path}: there is something already\n"
    (tmp_path / "file").write_text("precious")
    assert call("serve", "--engine", "scripted", "--unix-socket", str(tmp_path / "file")).status == 1
    assert (tmp_path / "file").read_text() == "precious"


async def test_a_certificate_needs_its_key_and_both_have_to_be_there(call, tmp_path):
    finished = call("serve", "--engine", "scripted", "--port", "0", "--tls-key", str(CERTIFICATE / "key.pem"))
    assert (finished.status, finished.stderr) == (1, "arriero: --tls-certificate and --tls-key go together\n")
    missing = ("--tls-certificate", str(tmp_path / "no.pem"), "--tls-key", str(CERTIFICATE / "key.pem"))
    finished = call("serve", "--engine", "scripted", "--port", "0", *missing)
    assert finished.status == 1
    assert finished.stderr == f"arriero: {tmp_path / 'no.pem'} cannot be read: No such file or directory\n"
    wrong = ("--tls-certificate", str(CERTIFICATE / "key.pem"), "--tls-key", str(CERTIFICATE / "key.pem"))
    finished = call("serve", "--engine", "scripted", "--port", "0", *wrong)
    assert finished.status == 1
    assert f"{CERTIFICATE / 'key.pem'} are no certificate and its key: " in finished.stderr
