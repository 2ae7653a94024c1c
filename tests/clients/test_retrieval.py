"""The search of docs/embeddings.md, word for word, with the model that it names."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from arriero.config import Settings
from arriero.config_sources import load
from conftest import live_server

PAGE = Path(__file__).parents[2] / "docs" / "embeddings.md"


@pytest.mark.timeout(300)
def test_the_documented_search_finds_what_it_says():
    code, said = re.search(
        r"<!-- retrieval -->\n```python\n(.*?)```\n\n```\n(.*?)```", PAGE.read_text("utf-8"), re.S
    ).groups()
    with live_server(Settings(model="all-MiniLM-L6-v2", cache=load({}).cache)) as live:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code.replace("http://127.0.0.1:8000", live.url), {})
    assert printed.getvalue() == said
