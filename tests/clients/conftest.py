from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

SCRIPT = [
    {"match": "name", "reply": "I am Arriero. 🦙"},
    {"match": "Once upon a time", "reply": ", there was a mule."},
    {"match": "slowly", "reply": "x" * 20_000},
    {"reply": "Hello there"},
]


@pytest.fixture
def live(go_live: Callable[..., Any]) -> Any:
    """A server with a few replies."""
    return go_live(script=SCRIPT)


@pytest.fixture
def client(live: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="EMPTY", max_retries=0) as client:
        yield client
