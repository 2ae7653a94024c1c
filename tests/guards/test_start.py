"""What a start imports: most of its time is spent there."""

import json
import subprocess
import sys

import pytest

from guards.counts import check

WEB = {"fastapi", "starlette", "uvicorn", "httptools"}
TERMINAL = {"typer", "rich"}
NUMBERS = {"numpy", "ml_dtypes", "safetensors"}
ALWAYS_LATER = {"numba", "llvmlite", "onnx", "onnxruntime", "gguf", "fastapi", "torch", "huggingface_hub"}


def imported(program: str) -> set[str]:
    """Names of the modules that are there after a program, in a process of its own."""
    finish = f"{program}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", finish], check=True, capture_output=True, text=True)
    return set(json.loads(finished.stdout))


@pytest.mark.parametrize(
    ("program", "not_yet", "num_own"),
    [
        # Before the model's process is started, which then imports by itself.
        ("import arriero.cli, arriero.app, arriero.engine.process.spawned", {"asyncio", "pydantic", *TERMINAL}, 7),
        # Before that process is told what to open.
        (
            "import arriero.cli.plain, arriero.cli.serve, arriero.store.ledger, arriero.app.pooling",
            {"tokenizers", "jinja2", *TERMINAL, *NUMBERS, *WEB, *ALWAYS_LATER},
            33,
        ),
        # The whole server.
        (
            "import arriero.cli.plain, arriero.cli.serve, arriero.cli.server, arriero.app.pooling, arriero.app.web",
            {*TERMINAL, *NUMBERS, *ALWAYS_LATER},
            107,
        ),
        # The model's process, which only hands on settings, templates and vocabularies.
        (
            "from arriero.app.opening import _prepare; _prepare()",
            {"pydantic", "jinja2", "ml_dtypes", "email", *ALWAYS_LATER, *WEB, *TERMINAL},
            90,
        ),
    ],
)
def test_no_more_is_imported_than_is_needed(program, not_yet, num_own):
    modules = imported(program)
    assert not modules & not_yet
    own = sum(name.split(".")[0] == "arriero" for name in modules)
    check(program, {"own modules": own}, {"own modules": num_own})
