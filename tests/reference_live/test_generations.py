import json
import os

import pytest

from references import generations

PROMPTS = slice(None, None, 1 if os.environ.get("PROOF") else 13)


@pytest.mark.timeout(3600)
def test_the_committed_answers_are_those_of_transformers_today():
    committed = json.loads(generations.FILE.read_text())
    made = generations.make(PROMPTS)
    assert set(made) == set(committed)
    for name, answers in made.items():
        assert answers == committed[name][PROMPTS], name
