"""Tokens read from the bytes of answers, however these are cut."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arriero.backends.usage import Body, Events, Rename, read_usage
from arriero.core import Meter


def event(value: Any, end: str = "\n\n") -> bytes:
    return b"data: " + orjson.dumps(value) + end.encode()


def chunk(content: str, **more: Any) -> dict[str, Any]:
    return {"model": "theirs", "choices": [{"index": 0, "delta": {"content": content}}], **more}


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
FIRST = event(chunk("", usage=None))
TEXTS = [chunk("a"), chunk('"usage":{"prompt_tokens":99}'), chunk('"model":"theirs"\n\ndata: x')]
LAST = event({"model": "theirs", "choices": [], "usage": USAGE})
STREAM = FIRST + b": still working\n\n" + b"".join(event(each) for each in TEXTS) + LAST + b"data: [DONE]\n\n"
SHOWN = STREAM.replace(LAST, b"").replace(b',"usage":null', b"")


def run(data: bytes, cuts: list[int], **options: Any) -> tuple[bytes, Meter, Events]:
    meter = Meter()
    events = Events(meter, **{"hide_usage": False, "rename": None} | options)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = [events.take(data[start:end]) for start, end in pairwise(edges)]
    return b"".join([*pieces, events.rest()]), meter, events


CUTS = st.lists(st.integers(0, 10_000), max_size=12)


@given(CUTS)
def test_a_stream_passes_unchanged_and_is_counted(cuts: list[int]) -> None:
    out, meter, events = run(STREAM, cuts)
    assert out == STREAM
    assert (meter.prompt_tokens, meter.completion_tokens, meter.cached_tokens) == (7, 3, 4)
    assert events.told
    assert meter.first_token_at is not None


@given(CUTS)
def test_usage_that_nobody_asked_for_is_taken_out(cuts: list[int]) -> None:
    out, meter, _ = run(STREAM, cuts, hide_usage=True)
    assert out == SHOWN
    assert (meter.prompt_tokens, meter.completion_tokens) == (7, 3)


@given(CUTS)
def test_names_change_where_they_are_names(cuts: list[int]) -> None:
    out, _, _ = run(STREAM, cuts, rename=Rename("ours"))
    values = [json.loads(line[6:]) for line in out.decode().split("\n") if line.startswith("data: {")]
    assert {value["model"] for value in values} == {"ours"}
    assert values[3]["choices"] == TEXTS[2]["choices"]


def written_by_others(value: Any) -> bytes:
    return json.dumps(value, indent=2).replace("/", "\\/").encode()


@pytest.mark.parametrize("theirs", ["theirs", "/models/a b.gguf", "ours", 'a"b\\', "modèle"])
@pytest.mark.parametrize(
    "write", [orjson.dumps, lambda value: json.dumps(value, indent=2).replace("/", "\\/").encode()]
)
def test_whatever_name_a_server_tells_is_changed(theirs: str, write: Callable[[Any], bytes]) -> None:
    value = {
        "metadata": {"model": "the caller's"},
        "choices": [{"message": {"content": '"model":"x"'}}],
        "model": theirs,
    }
    assert json.loads(Rename("ours").apply(write(value))) == {**value, "model": "ours"}


@pytest.mark.parametrize("field", ["response", "message"])
def test_the_name_in_an_event_about_the_whole_answer_changes(field: str) -> None:
    events = [
        {"type": "first", field: {"model": "theirs", "metadata": {"model": "mine"}}},
        {"type": "more", "delta": "x"},
    ]
    rename = Rename("ours")
    first, more = (rename.apply(event(each)) for each in events)
    assert first == event(events[0]).replace(b"theirs", b"ours")
    assert more == event(events[1])


@pytest.mark.parametrize(
    "data",
    [
        b'{"error": {"message": "no"}}',
        b'{"model": ""}',
        b'{"model": 3, "data": [{"model": "x"}]}',
        b'["model", {"model": "x"}]',
        b'{"model": "x"',
        b'{"model": "\\x"}',
        b"data: [DONE]\n\n",
    ],
)
def test_what_tells_no_name_passes_as_it_is(data: bytes) -> None:
    assert Rename("ours").apply(data) == data


@given(CUTS)
def test_chunks_are_counted_where_nothing_is_told(cuts: list[int]) -> None:
    data = FIRST + b"".join(event(each, "\r\n\r\n") for each in TEXTS)
    out, meter, events = run(data, cuts)
    assert out == data
    assert (meter.prompt_tokens, meter.completion_tokens) == (0, len(TEXTS))
    assert not events.told


def test_whole_events_are_not_held_back() -> None:
    events = Events(Meter(), hide_usage=True, rename=None)
    assert events.take(event(1)) == event(1)
    assert events.take(event(2) + b"data: 3") == event(2)
    assert events.take(b"\n") == b""
    assert events.take(b"\n") == b"data: 3\n\n"


def test_an_event_without_end_is_passed_on_in_parts() -> None:
    events = Events(Meter(), hide_usage=False, rename=None)
    out = b"".join(events.take(b"x" * 2**18) for _ in range(8))
    assert len(out) >= 2**20
    assert out + events.rest() == b"x" * 2**21


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}, (5, 2)),
        ({"input_tokens": 5, "output_tokens": 2, "output_tokens_details": {"reasoning_tokens": 1}}, (5, 2)),
        ({"prompt_tokens": 5, "total_tokens": 5}, (5, 0)),
        ({"total_tokens": 5}, (5, 0)),
    ],
)
def test_usage_is_read_wherever_it_stands(usage: dict[str, Any], tokens: tuple[int, int]) -> None:
    for value in ({"usage": usage, "data": []}, {"data": [], "usage": usage}, {"response": {"usage": usage}}):
        for data in (orjson.dumps(value), json.dumps(value, indent=2).encode()):
            meter = Meter()
            assert read_usage(data, meter)
            assert (meter.prompt_tokens, meter.completion_tokens) == tokens


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not JSON",
        b'{"usage": null}',
        b'{"usage": {}}',
        b'{"usage": {"prompt_tokens": "7"}}',
        b'{"usage": {"prompt_tokens": true, "completion_tokens": -1}}',
        b'{"usage": {"prompt_tokens": 7',
        b'{"usage": {bad}}',
        b'{"text": "\\"usage\\": {\\"prompt_tokens\\": 7}"}',
    ],
)
def test_what_is_no_usage_leaves_the_meter_alone(data: bytes) -> None:
    meter = Meter()
    assert not read_usage(data, meter)
    assert meter == Meter()


@pytest.mark.parametrize("first", [True, False])
def test_usage_of_a_large_body_is_found_at_either_end(first: bool) -> None:
    usage = {"usage": {"prompt_tokens": 9, "total_tokens": 9}}
    data = orjson.dumps((usage if first else {}) | {"data": "x" * 2**20} | usage)
    meter = Meter()
    body = Body(meter)
    for start in range(0, len(data), 5000):
        body.take(data[start : start + 5000])
    assert body.end()
    assert body.size == len(data)
    assert meter.prompt_tokens == 9
