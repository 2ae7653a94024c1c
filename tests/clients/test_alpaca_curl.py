"""Every command of the Chinese-LLaMA-Alpaca documentation, as printed but for the port."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

QUICK_COMPLETION = r"""
curl http://localhost:19327/v1/completions \
  -H "Content-Type: application/json" \
  -d '{   
    "prompt": "Tell me where the capital of China is"
  }'
"""  # noqa: W291  # as printed
ADVANCED_COMPLETION = r"""
curl http://localhost:19327/v1/completions \
  -H "Content-Type: application/json" \
  -d '{   
    "prompt": "Tell me the strengths and weaknesses of China and the United States respectively",
    "max_tokens": 90,
    "temperature": 0.7,
    "num_beams": 4,
    "top_k": 40
  }'
"""  # noqa: W291
QUICK_CHAT = r"""
curl http://localhost:19327/v1/chat/completions \
  -H "Content-Type: application/json" \
  -d '{   
    "messages": [
      {"role": "user","message": "Tell me some stories about Hangzhou"}
    ],
    "repetition_penalty": 1.0
  }'
"""  # noqa: W291
CONVERSATION = r"""
curl http://localhost:19327/v1/chat/completions \
  -H "Content-Type: application/json" \
  -d '{   
    "messages": [
      {"role": "user","message": "Tell me some stories about Hangzhou"},
      {"role": "assistant","message": "Sure, do you have any specific preferences about Hangzhou?"},
      {"role": "user","message": "I am quite fond of West Lake, could you tell me about it?"}
    ],
    "repetition_penalty": 1.0
  }'
"""  # noqa: W291
EMBEDDING = r"""
curl http://localhost:19327/v1/embeddings \
  -H "Content-Type: application/json" \
  -d '{
    "input": "The weather is really nice today"
  }'
"""

SCRIPT = [
    {"match": "capital of China", "reply": "The capital of China is Beijing."},
    {"match": "strengths and weaknesses", "reply": "The strengths of China lie in its rich culture and history."},
    {"match": "West Lake", "reply": "Indeed, West Lake is one of the most famous attractions in Hangzhou."},
    {"match": "Hangzhou", "reply": "Sure, do you have any specific preferences about Hangzhou?"},
]


@pytest.fixture
def run(go_live: Callable[..., Any]) -> Callable[[str], Any]:
    live = go_live(profile="alpaca", script=SCRIPT)
    return lambda command: run_printed(live, command)


def run_printed(live: Any, command: str) -> Any:
    command = command.replace("http://localhost:19327", live.url).replace("curl ", "curl -sS ")
    done = subprocess.run(command, shell=True, check=True, capture_output=True, text=True, timeout=30)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("command", "text"), [(QUICK_COMPLETION, SCRIPT[0]["reply"]), (ADVANCED_COMPLETION, SCRIPT[1]["reply"])]
)
def test_completions(run: Callable[[str], Any], command: str, text: str) -> None:
    body = run(command)
    assert list(body) == ["id", "object", "created", "model", "choices"]
    assert body["id"].startswith("cmpl-")
    assert len(body["id"]) == len("cmpl-3watqWsbmYgbWXupsSik7s")
    assert (body["object"], body["model"]) == ("text_completion", "chinese-llama-alpaca")
    assert body["choices"] == [{"index": 0, "text": text}]


@pytest.mark.parametrize(("command", "reply"), [(QUICK_CHAT, 3), (CONVERSATION, 2)])
def test_chats(run: Callable[[str], Any], command: str, reply: int) -> None:
    body = run(command)
    assert list(body) == ["id", "object", "created", "model", "choices"]
    assert body["id"].startswith("chatcmpl-")
    assert len(body["id"]) == len("chatcmpl-5L99pYoW2ov5ra44Ghwupt")
    assert (body["object"], body["model"]) == ("chat.completion", "chinese-llama-alpaca")
    asked = json.loads(command.partition("-d '")[2].rstrip().rstrip("'"))["messages"]
    said = [{"role": each["role"], "content": each["message"]} for each in asked]
    said.append({"role": "assistant", "content": SCRIPT[reply]["reply"]})
    assert body["choices"] == [{"index": index, "message": message} for index, message in enumerate(said)]


def test_embeddings(run: Callable[[str], Any]) -> None:
    body = run(EMBEDDING)
    assert list(body) == ["object", "data", "model"]
    assert (body["object"], body["model"]) == ("list", "chinese-llama-alpaca")
    (data,) = body["data"]
    assert list(data) == ["object", "embedding", "index"]
    assert (data["object"], data["index"]) == ("embedding", 0)
    assert sum(each * each for each in data["embedding"]) == pytest.approx(1)


def test_embeddings_in_the_other_profile(go_live: Callable[..., Any]) -> None:
    live = go_live()
    body = run_printed(live, EMBEDDING)
    assert list(body) == ["object", "data", "model", "usage"]
    assert len(body["data"][0]["embedding"]) == live.model.vectors.width
