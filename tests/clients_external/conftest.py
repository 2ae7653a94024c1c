"""Clients in environments of their own. They need an index of Python packages and one of npm's."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = [
    {"match": "name", "reply": "I am Arriero. 🦙"},
    {"match": "Once upon a time", "reply": ", there was a mule."},
    {"reply": "Hello there"},
]


def run(*command: str | Path, **options: Any) -> str:
    """What a command prints; fails with everything it said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def live(go_live: Callable[..., Any]) -> Any:
    return go_live(script=SCRIPT)


@pytest.fixture(scope="session")
def old_openai(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Runs Python source with the last `openai` before 1.0; gives what it prints."""
    directory = tmp_path_factory.mktemp("openai-0.28")
    run(sys.executable, "-m", "venv", directory)
    python = directory / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "openai==0.28.1")
    return lambda source: run(python, "-c", source)


@pytest.fixture(scope="session")
def lm_eval(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], str]:
    """Runs Python source with lm-evaluation-harness on some standard input; gives what it prints.

    Of what the harness depends on only the part that its API models import: the rest is for data sets and metrics.
    """
    directory = tmp_path_factory.mktemp("lm-eval")
    run(sys.executable, "-m", "venv", directory)
    python = directory / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "lm-eval==0.4.13")
    needed = ("aiohttp", "chardet", "jinja2", "more-itertools", "numpy", "pyyaml", "requests", "tenacity", "tqdm")
    run(python, "-m", "pip", "install", "--quiet", *needed)
    return lambda source, given: run(python, "-c", source, input=given)


@pytest.fixture(scope="session")
def node_openai(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Runs JavaScript source that may import npm's `openai`; gives what it prints."""
    npm, node = shutil.which("npm"), shutil.which("node")
    assert npm, "these tests need npm"
    assert node, "these tests need node"
    directory = tmp_path_factory.mktemp("npm")
    run(npm, "install", "--no-audit", "--no-fund", "openai@7", cwd=directory)

    def evaluate(source: str) -> str:
        file = directory / "test.mjs"
        file.write_text(source, "utf-8")
        return run(node, file, cwd=directory)

    return evaluate
