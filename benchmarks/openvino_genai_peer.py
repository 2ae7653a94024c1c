"""OpenVINO GenAI as the PyPI wheel, asked in a process of its own without HTTP between."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arriero.bench import words
from arriero.bench.load import Load, Result
from arriero.bench.measurement import Measurement
from contestants import Contestant
from llama_cpp import environment
from machine import THREADS

PACKAGE = "openvino-genai==2026.4.1.0"
NAME = "OpenVINO GenAI (no HTTP)"
PROGRAM = Path(__file__).with_name("openvino_genai_server.py")
GIGABYTES = 2
"""For keys and values; enough for everybody."""
_processes: dict[str, subprocess.Popen[str]] = {}


def openvino(file: Path, cache: Path) -> Contestant:
    """It, with a GGUF file, which it reads by itself."""
    interpreter = environment(cache / "openvino", PACKAGE)

    def flags(clients: int, context: int) -> dict[str, Any]:
        return {"model": str(file), "threads": THREADS, "cache": GIGABYTES}

    @contextmanager
    def serve(flags: Mapping[str, Any]) -> Iterator[str]:
        command = [str(interpreter), str(PROGRAM), json.dumps(flags)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            if not _answer(process, "ready"):
                raise RuntimeError(f"OpenVINO GenAI did not start: {' '.join(command)}")
            address = f"process {process.pid}"
            _processes[address] = process
            yield address
        finally:
            process.kill()
            process.wait()

    return Contestant(NAME, flags, serve, {}, generate)


def generate(load: Load) -> Result:
    """Put a closed loop on the process that `load.url` names; the times are its own."""
    process = _processes[load.url]
    assert process.stdin is not None
    assert load.requests is not None
    prompts = [words.prompt(load.prompt_tokens, load.seed, index) for index in range(load.requests)]
    work = {"prompts": prompts, "clients": load.clients, "max_tokens": load.max_tokens}
    print(json.dumps(work), file=process.stdin, flush=True)
    found = json.loads(_answer(process, "{") or "{}")
    measurements = [
        Measurement(
            due=each["sent"],
            latency=each["ended"] - each["sent"],
            first_token=each["first"] - each["sent"],
            prompt_tokens=load.prompt_tokens,
            output_tokens=each["tokens"],
        )
        for each in found["answers"]
    ]
    return Result(load=load, measurements=tuple(measurements), seconds=found["seconds"], generator_seconds=0.0)


def _answer(process: subprocess.Popen[str], beginning: str) -> str:
    """The next line that begins like that, past what the library says; empty when the process has ended."""
    assert process.stdout is not None
    return next((line for line in process.stdout if line.startswith(beginning)), "")
