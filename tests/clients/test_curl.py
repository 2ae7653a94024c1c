"""curl against a live server: the command of LangPort's documentation, and what people type."""

import json
import subprocess
from typing import Any


def curl(*arguments: str) -> str:
    return subprocess.run(["curl", "-sS", *arguments], check=True, capture_output=True, text=True, timeout=30).stdout


def test_the_command_of_langports_documentation(live: Any) -> None:
    """As printed there, with this server's address and model."""
    answer = subprocess.run(
        """curl -X 'POST' \\
  'http://localhost:8000/v1/chat/completions' \\
  -H 'accept: application/json' \\
  -H 'Content-Type: application/json' \\
  -d '{
    "model": "openbuddy",
    "stream": true,
    "top_p": 0.5,
    "temperature": 0.5,
    "messages": [
        {
            "role": "user",
            "content": "Hello! What is your name?"
        }
    ]
}'
""".replace("http://localhost:8000", live.url).replace("openbuddy", "scripted"),
        shell=True,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout
    *events, done, rest = answer.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    deltas = [json.loads(each.removeprefix("data: "))["choices"][0]["delta"] for each in events]
    assert "".join(delta.get("content", "") for delta in deltas) == "I am Arriero. 🦙"


def test_one_answer(live: Any) -> None:
    body = '{"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}'
    answer = json.loads(curl(f"{live.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body))
    assert answer["choices"][0]["message"]["content"] == "Hello there"


def test_forgetting_the_content_type_is_explained(live: Any) -> None:
    answer = json.loads(curl(f"{live.url}/v1/completions", "-d", '{"model": "scripted", "prompt": "Hi"}'))
    assert "application/json" in answer["error"]["message"]


def test_a_body_that_is_too_large_gets_an_answer(live: Any, tmp_path: Any) -> None:
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (17 * 2**20))
    url, data = f"{live.url}/v1/completions", ["--data-binary", f"@{large}"]
    for declared in ([], ["-H", "Transfer-Encoding: chunked"]):
        answer = curl(url, "-H", "Content-Type: application/json", *declared, *data)
        assert json.loads(answer)["error"]["code"] == "body_too_large"


def test_looking_around(live: Any) -> None:
    assert json.loads(curl(f"{live.url}/health"))["status"] == "ok"
    assert json.loads(curl(f"{live.url}/v1/models"))["data"][0]["id"] == "scripted"
    assert "swagger" in curl(f"{live.url}/docs")
    assert curl("-o", "/dev/null", "-w", "%{http_code}", f"{live.url}/v1/nothing") == "404"
