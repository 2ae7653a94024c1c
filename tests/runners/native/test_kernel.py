"""What becomes of the compiled step between two starts."""

import subprocess
import sys

import pytest

from arriero.machine import processor
from arriero.runners.native import kernel
from arriero.runners.native.machine_code import IS_KEPT

pytestmark = pytest.mark.skipif(not IS_KEPT, reason="machine code is kept on Linux and x86-64 only")


@pytest.fixture
def object_file(monkeypatch):
    """Gives how often it was asked for."""
    asked = []
    compile_once = kernel._compile

    def compile_again():
        asked.append(1)
        return compile_once()

    monkeypatch.setattr(kernel, "_compile", compile_again)
    return asked


def step(directory):
    """As a new process gets it."""
    return kernel.compiled_step.__wrapped__(directory)


def test_it_is_compiled_once(object_file, tmp_path):
    for _ in range(3):
        assert step(tmp_path)
    assert len(object_file) == 1


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_file_is_made_anew(object_file, tmp_path, damage):
    step(tmp_path)
    (file,) = tmp_path.glob("*.code")
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] + b"x" + whole[-8:] if damage is None else damage)
    assert step(tmp_path)
    assert file.read_bytes() == whole
    assert len(object_file) == 2


def test_another_processor_has_another_file(object_file, tmp_path, monkeypatch):
    step(tmp_path)
    monkeypatch.setattr(kernel, "processor", lambda: processor() - {"avx2"})
    step(tmp_path)
    assert len(list(tmp_path.glob("*.code"))) == 2
    assert len(object_file) == 2


def test_what_was_kept_needs_no_compiler(object_file, tmp_path):
    step(tmp_path)
    program = (
        "import sys; from pathlib import Path; from arriero.runners.native.kernel import compiled_step;"
        f"compiled_step(Path({str(tmp_path)!r}));"
        "assert not {'numba', 'llvmlite', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
