"""llama.cpp: its model files, its virtual environment, its server as a process.

It is the PyPI wheel `xllamacpp`, or the `llama-server` that the environment variable `LLAMA_SERVER` names, which
somebody has compiled for this very machine. The benchmarks compare with it; nothing in Arriero itself depends on it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np

PACKAGE = "xllamacpp==2026.10.11549"
LAUNCHER = Path(__file__).with_name("llama_cpp_server.py")
START_SECONDS = 60.0
COMPILED = os.environ.get("LLAMA_SERVER", "")
_OPTIONS = {
    "n_parallel": "--parallel",
    "n_ctx": "--ctx-size",
    "n_batch": "--batch-size",
    "n_ubatch": "--ubatch-size",
    "cpuparams.n_threads": "--threads",
    "cpuparams_batch.n_threads": "--threads-batch",
    "cpuparams.poll": "--poll",
    "cpuparams_batch.poll": "--poll-batch",
    "cache_ram_mib": "--cache-ram",
    "verbosity": "--verbosity",
    "flash_attn_type": "--flash-attn",
    "kv_unified": "--kv-unified",
    "cont_batching": "--cont-batching",
}
"""What `llama-server` calls an attribute of `CommonParams`."""


def requantise(source: Path, target: Path, kind: str) -> Path:
    """Write `source` again with its quantised matrices as `kind`, as llama.cpp's own tool would lay them out.

    All metadata is copied. One-dimensional tensors stay as they are, and so does the embedding (which is
    also the output projection): for this model's width llama.cpp keeps it at Q8_0 in every 4-bit file.
    An existing target is taken as it is.

    Returns: `target`.
    """
    if target.exists():
        return target
    wanted = gguf.GGMLQuantizationType[kind]
    reader = gguf.GGUFReader(source)
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, arch=reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=field.types[-1])
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    for tensor in reader.tensors:
        data, tensor_type = tensor.data, tensor.tensor_type
        if len(tensor.shape) == 2 and tensor.name != "token_embd.weight":
            weights = gguf.quants.dequantize(data, tensor_type).astype(np.float32)
            data, tensor_type = gguf.quants.quantize(weights, wanted), wanted
        writer.add_tensor(tensor.name, data, raw_dtype=tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part.rename(target)


def model_files(source: Path, directory: Path) -> dict[str, Path]:
    """The same model as Q4_1 (the source itself), Q8_0 and Q4_0, written into `directory` once."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {"Q4_1": source}
    for kind in ("Q8_0", "Q4_0"):
        files[kind] = requantise(source, directory / f"{source.stem.split('.')[0]}.{kind}.gguf", kind)
    return files


def environment(directory: Path, package: str) -> Path:
    """The interpreter of a virtual environment that holds a package and nothing else, made on first use."""
    interpreter = directory / "bin" / "python"
    if not interpreter.exists():
        venv.create(directory, with_pip=True)
        subprocess.run([interpreter, "-m", "pip", "install", "-q", package], check=True)
    return interpreter


def build() -> str:
    """Which llama.cpp it is that the benchmarks run."""
    if not COMPILED:
        return PACKAGE
    shown = subprocess.run([COMPILED, "--version"], capture_output=True, text=True, check=True)
    return f"{(shown.stdout + shown.stderr).strip().splitlines()[0]}, compiled for this machine"


@contextmanager
def server(directory: Path, model: Path, flags: dict[str, Any]) -> Iterator[str]:
    """Run llama.cpp's server on a free port; yields its base URL (ending in `/v1`), ends the process after.

    `flags` are attributes of `xllamacpp.CommonParams`, dotted for nested ones; the wheel's environment lies in
    `directory`.

    Raises:
        RuntimeError: it did not answer `/health` within 60 seconds; its log is shown.
    """
    command = _compiled(model, flags) if COMPILED else _wheel(directory, model, flags)
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        address = f"http://127.0.0.1:{command[-1]}" if COMPILED else process.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"llama.cpp did not start: {' '.join(command)}")
        _wait_until_healthy(address)
        yield f"{address}/v1"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wheel(directory: Path, model: Path, flags: dict[str, Any]) -> list[str]:
    interpreter = environment(directory, PACKAGE)
    return [str(interpreter), str(LAUNCHER), json.dumps({"model.path": str(model), **flags})]


def _compiled(model: Path, flags: dict[str, Any]) -> list[str]:
    """The last of it is the port."""
    command = [COMPILED, "--model", str(model), "--log-disable"]
    for name, value in flags.items():
        if value is True:
            command.append(_OPTIONS[name])
        else:
            shown = str(value).lower()
            command += [_OPTIONS[name], {"enabled": "on", "disabled": "off"}.get(shown.split("_")[-1], shown)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return [*command, "--port", str(free.getsockname()[1])]


def _wait_until_healthy(address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{address} did not become healthy") from None
            time.sleep(0.01)


if __name__ == "__main__":
    for kind, path in model_files(Path(sys.argv[1]), Path(sys.argv[2])).items():
        print(kind, path, path.stat().st_size)
