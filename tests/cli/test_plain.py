"""What is read without the parser means what the parser reads."""

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from arriero.cli.plain import plain_flags
from arriero.cli.settings import with_settings
from arriero.config import in_one_word
from arriero.config_description import flag as flag_of

NAMES = {flag_of(name): name for name in in_one_word()}
FLAGS = sorted(NAMES.keys() - {"MODEL"})
VALUES = st.sampled_from(["tiny", "0", "a b", "", "x=1", "-1", "-", "--", "MODEL"])
WORDS = st.one_of(
    VALUES,
    st.sampled_from([*FLAGS, "--help", "-h", "--max_queue", "--slot", "--no-such"]),
    st.builds("{}={}".format, st.sampled_from(FLAGS), VALUES),
)
PAIRS = st.builds(lambda flag, value: [flag, value], st.sampled_from(FLAGS), VALUES)


def parsed(words):
    """What the parser makes of words."""
    app, found = typer.Typer(add_completion=False), {}
    app.command()(with_settings(lambda **flags: found.update(flags)))
    app(words, standalone_mode=False)
    return {name: value for name, value in found.items() if value not in (None, [])}


@given(st.lists(st.one_of(PAIRS, WORDS.map(lambda word: [word])), max_size=4))
def test_plain_words_mean_what_they_mean_to_the_parser(groups):
    words = [word for group in groups for word in group]
    plain = plain_flags(words)
    assert plain is None or plain == parsed(words)


def test_what_people_start_servers_with_is_plain():
    words = ["model.gguf", "--port", "0", "--weights=int4", "--no-auth", "--log-level", "warning"]
    assert plain_flags(words) == {
        "model": "model.gguf",
        "port": "0",
        "weights": "int4",
        "no_auth": True,
        "log_level": "warning",
    }


@pytest.mark.parametrize(
    "words",
    ["--help", "a b", "--port", "--port --slots", "--port 1 --port 2", "--lora a=b", "--no-auth=1", "--max_queue 1"],
)
def test_all_else_is_for_the_parser(words):
    assert plain_flags(words.split()) is None
