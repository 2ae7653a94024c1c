"""A real llama.cpp server as a model of ours."""

import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.conftest import Gateway, gateway  # noqa: F401  # a fixture
from conftest import smollm2_path  # noqa: F401  # a fixture

PACKAGE = "xllamacpp==2026.10.11549"
LAUNCHER = Path(__file__).parents[2] / "benchmarks" / "llama_cpp_server.py"
ASK: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "Count to five."}],
    "max_tokens": 12,
    "temperature": 0,
}
StartGateway = Callable[..., Awaitable[Gateway]]


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory, smollm2_path: Path) -> Iterator[str]:  # noqa: F811
    """The URL of a server with a small model."""
    directory = tmp_path_factory.mktemp("llama-cpp")
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    python = directory / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], check=True)
    flags = {"model.path": str(smollm2_path), "n_ctx": 2048, "n_parallel": 2}
    with subprocess.Popen(
        [python, LAUNCHER, json.dumps(flags)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip() + "/v1"
        process.terminate()


async def test_an_answer_and_its_stream(llama_cpp: str, gateway: StartGateway) -> None:  # noqa: F811
    front = await gateway({"upstream": llama_cpp})
    answer = (await front.client.post("/v1/chat/completions", json=ASK)).json()
    text, usage = answer["choices"][0]["message"]["content"], answer["usage"]
    assert text
    streamed = (await front.client.post("/v1/chat/completions", json=ASK | {"stream": True})).text
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(each["choices"][0]["delta"].get("content") or "" for each in events) == text
    assert all(each["choices"] for each in events)
    assert streamed.endswith("data: [DONE]\n\n")
    for meter in front.meters:
        assert (meter.prompt_tokens, meter.completion_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
        assert meter.first_token_at is not None


async def test_its_other_endpoints_and_refusals(llama_cpp: str, gateway: StartGateway) -> None:  # noqa: F811
    front = await gateway({"upstream": llama_cpp}, {"name": "llama/*", "upstream": llama_cpp})
    tokens = (await front.post("/tokenize", content="Hello there")).json()["tokens"]
    assert (await front.post("/detokenize", tokens=tokens)).json()["content"] == "Hello there"
    assert (await front.post("/v1/completions", prompt="Once", max_tokens=2)).json()["usage"]["completion_tokens"] == 2
    assert (await front.chat(messages="?")).status_code >= 400
    listed = (await front.client.get("/v1/models")).json()["data"]
    assert len(listed) == 2
    assert listed[1]["id"].startswith("llama/")


async def test_more_requests_than_a_connection_of_its_takes(llama_cpp: str, gateway: StartGateway) -> None:  # noqa: F811
    front = await gateway({"upstream": llama_cpp})
    for _ in range(150):
        assert (await front.post("/tokenize", content="Hello")).status_code == 200


async def test_a_client_that_leaves_ends_the_generation_there(llama_cpp: str, gateway: StartGateway) -> None:  # noqa: F811
    front = await gateway({"upstream": llama_cpp})
    endless = ASK | {"stream": True, "max_tokens": 1500, "ignore_eos": True}
    for _ in range(4):  # more than there are slots
        async with front.client.stream("POST", "/v1/chat/completions", json=endless) as response:
            await anext(response.aiter_raw())
    assert (await front.client.post("/v1/chat/completions", json=ASK)).status_code == 200
