"""Compiled functions as plain machine code: taken out of an object file, kept, and loaded without any compiler.

An object file for Linux on x86-64 (ELF-64; System V ABI, AMD64 supplement) is laid out once, so that nothing in it
depends on where in memory it will lie: what its parts say of each other is relative. Only functions of the C library
have addresses of their own, and a table of these is filled in when the code is loaded.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import platform
import struct
import sys
from typing import Any, NamedTuple

IS_KEPT = sys.platform == "linux" and platform.machine() == "x86_64"
"""Whether machine code can be kept on this system."""

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_SYMBOLS, _RELOCATIONS, _NO_BITS = 2, 4, 8
_WRITABLE, _IN_MEMORY = 1, 2
_RELATIVE = (2, 4)
"""R_X86_64_PC32 and R_X86_64_PLT32: 32 bits, from the place where they stand to what they name."""
_UNWINDING = ".eh_frame"
"""Tables for exceptions, of which none passes through."""
_JUMP = struct.Struct("<2si")
"""A jump to the address that stands so many bytes on."""
_ALIGNMENT = 64
_HEAD = struct.Struct("<I")


class Unkept(Exception):
    """Machine code that cannot be kept or loaded, and why."""


class _Section(NamedTuple):
    name: str
    kind: int
    flags: int
    content: bytes
    link: int
    target: int


class _Symbol(NamedTuple):
    name: str
    section: int
    value: int


def lay_out(object_file: bytes, entry: str) -> bytes:
    """Code and constants of an object file, as `load` takes them; `entry` is the function that it is to give.

    Raises `Unkept` for code that has data of its own, or names something by its absolute address.
    """
    sections = _sections(object_file)
    (table,) = (section for section in sections if section.kind == _SYMBOLS)
    symbols = [
        _Symbol(_text(sections[table.link].content, name), section, value)
        for name, _, _, section, value, _ in _SYMBOL.iter_unpack(table.content)
    ]
    code, places = bytearray(), {}
    for number, section in enumerate(sections):
        if section.flags & _IN_MEMORY and section.name != _UNWINDING:
            if section.kind == _NO_BITS or section.flags & _WRITABLE:
                raise Unkept(f"they have data in {section.name}")
            code += bytes(-len(code) % _ALIGNMENT)
            places[number] = len(code)
            code += section.content
    foreign = [each.name for each in symbols if each.name and not each.section]
    jumps = _add_jumps(code, foreign)

    def place_of(symbol: _Symbol) -> int:
        if symbol.name in jumps:
            return jumps[symbol.name]
        if symbol.section not in places:
            raise Unkept(f"{symbol.name or 'something'} is not in them")
        return places[symbol.section] + symbol.value

    for section in sections:
        if section.kind == _RELOCATIONS and section.target in places:
            for offset, about, addend in _RELOCATION.iter_unpack(section.content):
                if about & 0xFFFFFFFF not in _RELATIVE:
                    raise Unkept(f"they have a relocation of type {about & 0xFFFFFFFF}")
                place = places[section.target] + offset
                struct.pack_into("<i", code, place, place_of(symbols[about >> 32]) + addend - place)
    (start,) = (place_of(each) for each in symbols if each.name == entry)
    head = json.dumps({"start": start, "foreign": foreign}).encode()
    return _HEAD.pack(len(head)) + head + code


def load(kept: bytes, prototype: Any) -> Any:
    """The function that `lay_out` was asked for; `prototype` is what ctypes makes of its signature.

    Raises `Unkept` when the C library lacks something, or the system lets no code be loaded.
    """
    (size,) = _HEAD.unpack_from(kept)
    head, code = json.loads(kept[_HEAD.size : _HEAD.size + size]), kept[_HEAD.size + size :]
    library = ctypes.CDLL(None)
    memory = mmap.mmap(-1, len(code), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = code
    for number, name in enumerate(head["foreign"]):
        try:
            address = ctypes.cast(library[name], ctypes.c_void_p).value
        except AttributeError:
            raise Unkept(f"the C library has no {name}") from None
        struct.pack_into("<Q", memory, len(code) - 8 * (len(head["foreign"]) - number), address)
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    library.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if library.mprotect(first, len(memory), mmap.PROT_READ | mmap.PROT_EXEC):
        raise Unkept("the system lets no code be loaded")
    function: Any = prototype(first + head["start"])
    function.memory = memory  # which is to live as long
    return function


def _add_jumps(code: bytearray, names: list[str]) -> dict[str, int]:
    """Add a jump to each foreign function, then the table of their addresses; returns where the jumps are."""
    code += bytes(-len(code) % 8)
    places = {name: len(code) + 8 * number for number, name in enumerate(names)}
    for _ in names:  # each takes 8 bytes, as its address does
        code += _JUMP.pack(b"\xff\x25", 8 * len(names) - _JUMP.size) + bytes(2)
    code += bytes(8 * len(names))
    return places


def _sections(data: bytes) -> list[_Section]:
    (begin,) = struct.unpack_from("<Q", data, 40)
    count, names = struct.unpack_from("<HH", data, 60)
    rows = [_SECTION.unpack_from(data, begin + number * _SECTION.size) for number in range(count)]
    contents = [b"" if row[1] == _NO_BITS else data[row[4] : row[4] + row[5]] for row in rows]
    return [
        _Section(_text(contents[names], row[0]), row[1], row[2], content, row[6], row[7])
        for row, content in zip(rows, contents, strict=True)
    ]


def _text(texts: bytes, start: int) -> str:
    return texts[start : texts.index(b"\0", start)].decode()
