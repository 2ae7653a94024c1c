"""schemathesis makes requests of the OpenAPI description, those that fit it and those that do not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = os.environ.get("PROOF_SECONDS", "60")
CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance,response_headers_conformance"


@pytest.mark.parametrize("profile", ["openai", "alpaca"])
def test_nothing_that_is_asked_makes_the_server_fail(profile: str, tmp_path: Path) -> None:
    serve = [sys.executable, "-m", "arriero", "serve", "--engine", "scripted", "--port", "0", "--log-level", "error"]
    serve += ["--store", str(tmp_path / "arriero.db"), "--profile", profile]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            found = re.search(r"http://[^/]+", server.stdout.readline())
            assert found
            program = Path(sys.executable).with_name("schemathesis")
            run = [str(program), "run", f"{found[0]}/openapi.json", "--checks", CHECKS, "--max-time", SECONDS]
            finished = subprocess.run(
                [*run, "--max-examples", "100", "--phases", "examples,coverage,fuzzing"],
                cwd=tmp_path,
                env=os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(Path(__file__).parent)},
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
        finally:
            server.terminate()
    print(finished.stdout[-3000:])
    assert finished.returncode == 0, finished.stdout[-10_000:] + finished.stderr
