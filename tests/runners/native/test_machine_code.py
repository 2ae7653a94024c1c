"""Machine code out of object files, which LLVM writes here as it does for the kernels."""

import ctypes

import llvmlite.binding as llvm
import pytest

from arriero.runners.native.machine_code import IS_KEPT, Unkept, lay_out, load

pytestmark = pytest.mark.skipif(not IS_KEPT, reason="machine code is kept on Linux and x86-64 only")

PROTOTYPE = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
SQUARES = """
@squares = internal constant [4 x i64] [i64 0, i64 1, i64 4, i64 9], align 64
@names = internal constant [2 x ptr] [ptr @names, ptr null]

define internal i64 @square(i64 %number) noinline {
  %place = getelementptr [4 x i64], ptr @squares, i64 0, i64 %number
  %square = load i64, ptr %place
  ret i64 %square
}
"""


def object_of(text):
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2, reloc="pic", codemodel="small")
    return machine.emit_object(llvm.parse_assembly(text))


def function_of(text):
    return load(lay_out(object_of(text), "entry"), PROTOTYPE)


def test_functions_find_each_other_and_constants():
    square = function_of(
        SQUARES.replace("@names", ";") + "define i64 @entry(i64 %x) { %y = call i64 @square(i64 %x) ret i64 %y }"
    )
    assert [square(number) for number in range(4)] == [0, 1, 4, 9]


def test_functions_of_the_c_library_are_found():
    function = function_of(
        "declare i64 @labs(i64) declare i64 @llabs(i64)"
        "define i64 @entry(i64 %x) { %y = call i64 @labs(i64 %x) %z = add i64 %y, -50"
        " %a = call i64 @llabs(i64 %z) ret i64 %a }"
    )
    assert [function(number) for number in (-3, 3, -70)] == [47, 47, 20]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("@state = global i64 5 define i64 @entry(i64 %x) { %y = load i64, ptr @state ret i64 %y }", "data in"),
        ("@state = global i64 0 define i64 @entry(i64 %x) { %y = load i64, ptr @state ret i64 %y }", "data in"),
        ("declare i64 @nobody(i64) define i64 @entry(i64 %x) { %y = call i64 @nobody(i64 %x) ret i64 %y }", "nobody"),
        ("@there = external global i64 define i64 @entry(i64 %x) { ret i64 ptrtoint (ptr @there to i64) }", "type"),
    ],
)
def test_code_that_needs_more_is_refused(text, reason):
    with pytest.raises(Unkept, match=reason):
        function_of(text)
