"""A streamed answer and one in a piece are the same answer."""

import json
from collections.abc import Iterable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
stops = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3), max_size=4)


def cut(text: str, stops: Iterable[str]) -> str:
    """The text before the earliest stop string."""
    return text[: min((start for stop in stops if (start := text.find(stop)) >= 0), default=len(text))]


def joined(body: str, index: int) -> tuple[str, str | None]:
    """Text and finish reason of one choice of a stream."""
    events = [json.loads(each.removeprefix("data: ")) for each in body.split("\n\n")[:-2]]
    mine = [each["choices"][0] for each in events if each["choices"][0]["index"] == index]
    text = "".join(each["text"] if "text" in each else each["delta"].get("content", "") for each in mine)
    return text, mine[-1]["finish_reason"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), text=texts, n=st.integers(1, 3), max_tokens=st.none() | st.integers(1, 60))
async def test_joined_chunks_are_the_answer(
    served: Any, data: st.DataObject, text: str, n: int, max_tokens: int | None
) -> None:
    inside = [text[start : start + 2] for start in range(len(text) - 1)]
    stop = data.draw(stops | st.lists(st.sampled_from(inside), max_size=4) if inside else stops)
    options = {"n": n, "stop": stop, "max_tokens": max_tokens}
    chat = (await served.chat(text, **options)).json()["choices"]
    chat_stream = (await served.chat(text, **options, stream=True)).text
    for choice in chat:
        assert joined(chat_stream, choice["index"]) == (choice["message"]["content"], choice["finish_reason"])
        if max_tokens is None:
            assert choice["message"]["content"] == cut(text, stop)
        else:
            assert text.startswith(choice["message"]["content"].removesuffix("\ufffd"))
    prompt = served.model.tokenizer.encode(text, parse_special=False) or ""
    completions = (await served.complete(prompt, **options)).json()["choices"]
    completion_stream = (await served.complete(prompt, **options, stream=True)).text
    for choice in completions:
        assert joined(completion_stream, choice["index"]) == (choice["text"], choice["finish_reason"])
        if prompt:
            assert choice["text"] == chat[choice["index"]]["message"]["content"]
