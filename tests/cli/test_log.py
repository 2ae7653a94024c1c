import json
import logging
import sys

from hypothesis import given
from hypothesis import strategies as st

from arriero.cli.log import JsonLines, TextLines
from arriero.wire.scope import REQUEST_ID

TEXT = st.text(st.characters())  # halves of surrogate pairs too, as `json.loads` makes them


def record(message: str, fields: dict[str, object] | None = None, *, failing: bool = False) -> logging.LogRecord:
    error = None
    if failing:
        try:
            raise ValueError(message)
        except ValueError:
            error = sys.exc_info()
    made = logging.LogRecord("arriero", logging.WARNING, "", 0, "%s", (message,), error)
    if fields is not None:
        made.fields = fields
    return made


def test_a_line_for_people() -> None:
    line = TextLines().format(record("request", {"status": 200, "model": "a name", "key": ""}))
    assert line.endswith(' WARNING request status=200 model="a name" key=""')


def test_a_line_for_programs() -> None:
    line = json.loads(JsonLines().format(record("request", {"status": 200}, failing=True)))
    assert line.pop("time").endswith("+00:00")
    assert line.pop("exception").splitlines()[-1] == "ValueError: request"
    assert line == {"level": "warning", "message": "request", "status": 200}


@given(TEXT, TEXT)
def test_nothing_from_outside_ends_a_line_or_begins_one(message: str, value: str) -> None:
    line = TextLines().format(record(message, {"model": value}))
    assert line.isprintable()
    failed = TextLines().format(record(message, failing=True)).splitlines()
    assert all(each.startswith("  ") for each in failed[1:])
    lines = JsonLines().format(record(message, {"model": value}))
    assert "\n" not in lines
    assert json.loads(lines)["model"] == value


def test_lines_within_a_request_have_its_id() -> None:
    token = REQUEST_ID.set("req_1")
    try:
        assert TextLines().format(record("careful")).endswith("careful id=req_1")
        assert json.loads(JsonLines().format(record("careful")))["id"] == "req_1"
    finally:
        REQUEST_ID.reset(token)
