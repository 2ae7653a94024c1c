import re

from hypothesis import given
from hypothesis import strategies as st

from arriero.wire.headers import ignored_header


def test_unknown_parameters_are_listed() -> None:
    assert ignored_header(["guided_json", "messages.0.weight"]) == "guided_json,messages.0.weight"


@given(st.lists(st.text(min_size=1)))
def test_the_list_fits_a_header_whatever_clients_invent(names: list[str]) -> None:
    value = ignored_header(name.encode("utf-8", "replace").decode() for name in names)
    assert re.fullmatch(r"[A-Za-z0-9_.~%,-]*", value)
    assert len(value) <= 1024


def test_a_list_that_is_too_long_says_so() -> None:
    assert ignored_header(["a" * 998, "b" * 10]) == "a" * 998 + ",..."
    assert ignored_header(["a" * 1001]) == "..."
