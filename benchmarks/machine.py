"""The machine that figures are taken on: what it is, and how busy others keep it. For Linux."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
THREADS = os.cpu_count() or 1
QUIET = 0.1
"""Cores that others may take during a burst, and before one starts."""
TRIES = 6
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
    """Run `arriero` with these flags, the port being 0; gives its URL.

    Its bytecode is kept, as that of an installed package is, whatever the environment says.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "arriero", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
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
    """Processor seconds of this process and all that it runs or ran."""
    ended = os.times()
    ticks = sum(sum(map(int, each[11:15])) for each in map(_status, descendants()))
    running = ticks / os.sysconf("SC_CLK_TCK")
    return time.process_time() + ended.children_user + ended.children_system + running


def own_memory() -> int:
    """Bytes of memory that the processes take which this one runs, itself not included.

    The proportional set size: what several processes share counts once, and pages of mapped files count like any
    other (proc(5), `smaps_rollup`).
    """
    total = 0
    for pid in descendants():
        with suppress(OSError):  # It has just ended.
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def descendants() -> list[int]:
    """The processes that this one runs, and those that they run."""
    parents = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(directory.name)] = int(_status(int(directory.name))[1])
    found = [os.getpid()]
    for pid in found:  # It grows while it is read.
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def _status(pid: int) -> list[str]:
    """The fields of `/proc/PID/stat` after the name; none of a process that is gone count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["0"] * 15


def quietly(measure: Callable[[int], T]) -> tuple[T, float]:
    """Measure until others leave the machine alone, six times at most; `measure` is told which attempt it is.

    Returns: the first result of a quiet time or else of the quietest one, and how many cores others took then.
    """
    results: list[tuple[T, float]] = []
    for attempt in range(TRIES):
        wait_for_quiet()
        busy, own, started = busy_seconds(), own_seconds(), time.perf_counter()
        result = measure(attempt)
        others = busy_seconds() - busy - own_seconds() + own
        results.append((result, max(0.0, others / (time.perf_counter() - started))))
        if results[-1][1] <= QUIET:
            break
    return min(results, key=lambda each: each[1])


def wait_for_quiet() -> None:
    """Wait until others leave the machine alone, or until it is no use."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        busy = busy_seconds()
        time.sleep(1)
        if busy_seconds() - busy <= QUIET:
            return
