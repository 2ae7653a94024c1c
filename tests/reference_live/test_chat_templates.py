import json

from references.chat_templates import FILE, make


def test_the_committed_texts_are_those_of_transformers_today():
    assert make() == json.loads(FILE.read_text("utf-8"))
