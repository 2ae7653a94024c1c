"""The machine that figures are taken on: what it is, and how busy others keep it. For Linux."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

THREADS = os.cpu_count() or 1
QUIET = 0.1
"""Cores that others may take during a burst, and before one starts."""
PATIENCE = 60.0
"""Seconds to wait for others."""


def machine(**more: Any) -> dict[str, Any]:
    """What the figures were taken with."""
    information = Path("/proc/cpuinfo").read_text()
    model = next(line.split(":")[1].strip() for line in information.splitlines() if line.startswith("model name"))
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8")
    features = [name for name in wanted if f" {name} " in f"{information.split('flags', 1)[1].splitlines()[0]} "]
    return {
        "processor": model,
        "cores": THREADS,
        "features": features,
        "system": platform.platform(),
        "python": platform.python_version(),
        "arriero": version("arriero"),
        "onnxruntime": version("onnxruntime"),
        **more,
    }


@contextmanager
def serve_arriero(flags: Sequence[str]) -> Iterator[str]:
    """Run `arriero` with these flags, the port being 0; gives its URL."""
    process = subprocess.Popen([sys.executable, "-m", "arriero", *flags], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"arriero {shlex.join(flags)} did not start")
        yield next(word for word in line.split() if word.startswith("http://"))
    finally:
        process.terminate()
        process.wait(60)


def busy_seconds() -> float:
    """Processor seconds of everybody since the machine started."""
    _, *fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _, _, irq, soft = map(int, fields[:7])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Processor seconds of this process and the servers it runs."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in children]
    return time.process_time() + sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet() -> None:
    """Wait until others leave the machine alone, or until it is no use."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        busy = busy_seconds()
        time.sleep(1)
        if busy_seconds() - busy <= QUIET:
            return
