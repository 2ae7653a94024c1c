"""Python, the packages, what is compiled in them, and the processor."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator

from arriero.cli.doctor.finding import Finding, command, fail, ok, warn

_LIBRARIES = ("numpy", "onnxruntime", "numba", "tokenizers", "safetensors", "uvloop", "httptools", "orjson")
"""Modules with compiled code, by the names of their packages."""
_PATIENCE = 120
"""Seconds that loading all of them may take."""
_PROBE = """\
import importlib, json, sys
for name in sys.argv[1:]:
    print(json.dumps([name, None]), flush=True)
    try:
        importlib.import_module(name)
    except BaseException as error:
        print(json.dumps([name, f"{type(error).__name__}: {error}"]), flush=True)
    else:
        print(json.dumps([name, ""]), flush=True)
"""
"""Tells before and after each module: one that ends the process is the last that was begun."""


def check_python() -> Iterator[Finding]:
    """The interpreter is one that this version runs on."""
    from packaging.specifiers import SpecifierSet

    about = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    try:
        wanted = importlib.metadata.metadata("arriero")["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        yield warn("python", f"{about}; Arriero is not installed as a package", pip("."))
        return
    if platform.python_version() in SpecifierSet(wanted, prereleases=True):
        yield ok("python", about)
    else:
        yield fail("python", f"{about}, but Arriero needs Python {wanted}", "uv venv --python 3.12")


def check_packages() -> Iterator[Finding]:
    """All packages that Arriero asks for are there, in versions that it asks for."""
    from packaging.requirements import Requirement

    try:
        texts = importlib.metadata.requires("arriero") or []
    except importlib.metadata.PackageNotFoundError:
        return
    requirements = [Requirement(text) for text in texts]
    wanted = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    wrong = []
    for each in wanted:
        try:
            version = importlib.metadata.version(each.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append((each, f"{each.name} is not installed"))
            continue
        if not each.specifier.contains(version, prereleases=True):
            wrong.append((each, f"{each.name} is {version}, but {each.specifier} is needed"))
    if wrong:
        needed = [f"{each.name}{each.specifier}" for each, _ in wrong]
        yield fail("packages", "; ".join(text for _, text in wrong), pip(*needed))
    else:
        yield ok("packages", f"all {len(wanted)} are there, in versions that do")


def check_libraries() -> Iterator[Finding]:
    """What is compiled can be loaded on this machine: tried in another process, which it may end."""
    names = [name for name in _LIBRARIES if importlib.util.find_spec(name) is not None]
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _PROBE, *names], capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        yield fail(
            "libraries", f"{', '.join(names)} were not loaded within {_PATIENCE} s", pip("--force-reinstall", *names)
        )
        return
    results = dict(json.loads(line) for line in tried.stdout.splitlines() if line.startswith("["))
    wrong = {
        name: _ending(tried.returncode) if error is None else error for name, error in results.items() if error != ""
    }
    if wrong:
        found = "; ".join(f"{name} cannot be loaded: {error}" for name, error in wrong.items())
        yield fail("libraries", found, pip("--force-reinstall", *wrong))
    else:
        yield ok("libraries", f"{', '.join(results)} can be loaded")


def check_processor() -> Iterator[Finding]:
    """What computes here, and which engine that makes the fast one."""
    from arriero.machine import physical_cores
    from arriero.runners.native import is_fast

    cores = f"{platform.machine()}, {physical_cores()} physical cores at hand"
    if is_fast():
        yield ok("processor", f"{cores}, AVX-512 VNNI: --engine auto takes native for the models that it computes")
    elif importlib.util.find_spec("numba") is None:
        yield warn("processor", f"{cores}; without numba there is no native engine", pip("numba"))
    else:
        yield ok("processor", f"{cores}, no AVX-512 VNNI: --engine auto takes onnx, which is faster here than native")


def pip(*words: str) -> str:
    """The command that installs something beside Arriero."""
    if importlib.util.find_spec("pip") is None:
        return command("uv", "pip", "install", "--python", sys.executable, *words)
    return command(sys.executable, "-m", "pip", "install", *words)


def _ending(status: int) -> str:
    """How the process ended that was loading a library."""
    try:
        return f"it ends the process with {signal.Signals(-status).name}"
    except ValueError:
        return f"it ends the process with status {status}"
