"""schemathesis makes requests of the OpenAPI description, those that fit it and those that do not."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

SECONDS = os.environ.get("PROOF_SECONDS", "60")
CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance,response_headers_conformance"
KEY = "a-key-of-the-settings"


@pytest.mark.timeout(700)
@pytest.mark.parametrize("shows_key", [True, False])
@pytest.mark.parametrize("profile", ["openai", "alpaca"])
def test_nothing_that_is_asked_makes_the_server_fail(
    profile: str, shows_key: bool, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    serve = [sys.executable, "-m", "arriero", "serve", "--engine", "scripted", "--port", "0", "--log-level", "error"]
    serve += ["--store", str(tmp_path / "arriero.db"), "--profile", profile]
    variables = os.environ | {"ARRIERO_API_KEY": KEY}
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, env=variables) as server:
        try:
            assert server.stdout
            found = re.search(r"http://[^/]+", server.stdout.readline())
            assert found
            authorization = {"Authorization": f"Bearer {KEY}"}
            asked = urllib.request.Request(f"{found[0]}/openapi.json", headers=authorization)
            description = tmp_path / "openapi.json"
            description.write_bytes(urllib.request.urlopen(asked).read())
            program = Path(sys.executable).with_name("schemathesis")
            run = [str(program), "run", str(description), "--url", found[0], "--checks", CHECKS, "--max-time", SECONDS]
            run += ["--max-examples", "100", "--phases", "examples,coverage,fuzzing"]
            finished = subprocess.run(
                run + (["-H", f"Authorization: Bearer {KEY}"] if shows_key else []),
                cwd=tmp_path,
                env=os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(Path(__file__).parent)},
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
        finally:
            server.terminate()
    num_operations = sum(len(methods) for methods in json.loads(description.read_text())["paths"].values())
    cases = re.search(r"(\d[\d,]*) generated", finished.stdout)
    figures(
        f"schemathesis, profile {profile}, {'with' if shows_key else 'without'} a key: {num_operations} operations, "
        f"{cases[1] if cases else 'unknown'} cases in {SECONDS} s at most, status {finished.returncode}"
    )
    assert finished.returncode == 0, finished.stdout[-10_000:] + finished.stderr
