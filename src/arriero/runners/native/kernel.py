"""The compiled step. It is made once for a processor; at every other start it is loaded without the compiler.

To import numba takes longer than to read the weights of a small model, and tens of megabytes.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arriero.machine import processor
from arriero.models.sources.storage import make_durable, workspace
from arriero.runners.native.machine_code import IS_KEPT, Unkept, lay_out, load

logger = logging.getLogger(__name__)

Step = Callable[[int, int, int, int], None]
"""`step.run`: a thread's number, and the addresses of plan, program and reals."""

_PROTOTYPE = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)  # calls do not hold the interpreter's lock
_ENTRY = "arriero_step"
_DIGEST = hashlib.sha256


@functools.cache
def compiled_step(directory: Path) -> Step:
    """The step for this processor, from what `directory` holds; compiled where that is nothing, or something damaged.

    Raises `ModelLoadError` if nothing can be written there.
    """
    if not IS_KEPT:
        return _let_numba_keep(directory)
    key = _key()
    file = directory / f"{key}.code"
    if found := _kept(file):
        return found
    with workspace(directory, key) as temporary:
        if found := _kept(file):  # by another process, meanwhile
            return found
        try:
            code = lay_out(_compile(), _ENTRY)
            step: Step = load(code, _PROTOTYPE)
        except Unkept as error:
            logger.warning("The compiled kernels cannot be kept, so that every start takes longer: %s", error)
            return _numba_step()
        fresh = temporary / file.name
        fresh.write_bytes(_DIGEST(code).digest() + code)
        make_durable(fresh)
        os.replace(fresh, file)
    return step


def _key() -> str:
    """Another one for whatever the machine code depends on."""
    digest = _DIGEST("\n".join(sorted(processor())).encode())
    for source in (*sorted(Path(__file__).parent.glob("*.py")), *map(_version, ("numba", "llvmlite"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def _version(package: str) -> Path:
    """The file that says a compiler's version; to ask the installer's records takes much longer."""
    found = importlib.util.find_spec(package)
    assert found
    assert found.origin
    return Path(found.origin).with_name("_version.py")


def _kept(file: Path) -> Step | None:
    """The step that a file holds, if it is whole."""
    try:
        content = file.read_bytes()
        code = content[_DIGEST().digest_size :]
        step: Step | None = load(code, _PROTOTYPE) if content.startswith(_DIGEST(code).digest()) else None
    except (OSError, Unkept):
        return None
    return step


@functools.cache
def _compile() -> bytes:
    """An object file in which `_ENTRY` is the step as a C function."""
    import llvmlite.binding as llvm

    step: Any = _numba_step()
    (signature,) = step.signatures
    name = step.overloads[signature].fndesc.llvm_func_name
    module = llvm.parse_assembly(step.inspect_llvm(signature))
    module.link_in(llvm.parse_assembly(_C_FUNCTION.format(entry=_ENTRY, step=name)))
    for each in (*module.functions, *module.global_variables):
        if not each.is_declaration and each.name != _ENTRY:
            each.linkage = "internal"
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="small",
    )
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
    content: bytes = machine.emit_object(module)
    return content


_C_FUNCTION = """
declare i32 @"{step}"(ptr, ptr, i64, i64, i64, i64)

define void @{entry}(i64 %thread, i64 %plan, i64 %program, i64 %reals) {{
  %result = alloca ptr
  %error = alloca ptr
  call i32 @"{step}"(ptr %result, ptr %error, i64 %thread, i64 %plan, i64 %program, i64 %reals)
  ret void
}}

define void @NRT_MemInfo_call_dtor(ptr %owner) {{
  ret void
}}
"""
"""numba's functions also take places for a result and an error. Their arrays lie at addresses and have no owner."""


def _numba_step() -> Step:
    """The step as numba compiles it, here and now rather than in the first request."""
    from numba import types

    from arriero.runners.native.step import run

    run.compile((types.int64,) * 4)
    step: Step = run
    return step


def _let_numba_keep(directory: Path) -> Step:
    """The step from numba's own cache, where machine code is not kept; apart from what other sources became."""
    import numba
    from numba.core import config

    settings: Any = config
    settings.CACHE_DIR = str(directory / f"{numba.__version__}-{_key()}")
    return _numba_step()
