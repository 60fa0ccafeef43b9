from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from ds_core.errors import OpError
from ds_core.ops import native
from ds_core.ops.arguments import argument_struct, argument_structs, read_structs

COMPILER = shutil.which("cc") or shutil.which("gcc")


@pytest.mark.skipif(COMPILER is None, reason="no C compiler to ask for offsets")
def test_every_field_lies_where_the_compiler_puts_it(tmp_path: Path) -> None:
    assert COMPILER is not None
    lines = ["#include <stddef.h>", "#include <stdio.h>", '#include "ds_kernel.h"', "int main(void) {"]
    for found in argument_structs().values():
        lines.append(f'printf("{found.name} %zu\\n", sizeof({found.name}));')
        lines += [f'printf("{found.name}.{f} %zu\\n", offsetof({found.name}, {f}));' for f, _ in found.fields]
    (tmp_path / "ask.c").write_text("\n".join([*lines, "return 0; }"]))
    program = tmp_path / "ask"
    subprocess.run([COMPILER, f"-I{native.include_dir()}", tmp_path / "ask.c", "-o", program], check=True)
    answers = dict(line.split() for line in subprocess.check_output([program], text=True).splitlines())
    for found in argument_structs().values():
        assert found.size == int(answers[found.name])
        for index, (field, code) in enumerate(found.fields):
            values = {name: (index + 1 if name == field else 0) for name, _ in found.fields}
            at = int(answers[f"{found.name}.{field}"])
            kind = {"f": ctypes.c_float, "d": ctypes.c_double}.get(code)
            width = {"I": ctypes.c_uint32, "i": ctypes.c_int32}.get(code, ctypes.c_uint64)
            assert (kind or width).from_buffer_copy(found(**values), at).value == index + 1, (found.name, field)


def test_a_struct_begins_with_its_own_size() -> None:
    adam = argument_struct("ds_adam_args")
    packed = adam(**{name: 0 for name, _ in adam.fields})
    assert int.from_bytes(packed[:4], "little") == adam.size == len(packed)


def test_a_missing_an_unknown_and_an_unfit_field_are_named() -> None:
    squares = argument_struct("ds_sum_of_squares_args")
    with pytest.raises(OpError, match="ds_sum_of_squares_args: missing x, out"):
        squares(dtype=1, numel=4)
    with pytest.raises(OpError, match=r"has no field 'nummel'.*numel"):
        squares(dtype=1, nummel=4, x=0, out=0, numel=3)
    with pytest.raises(OpError, match="does not fit"):
        squares(dtype=2**40, numel=4, x=0, out=0)
    with pytest.raises(OpError, match="no struct 'ds_adm_args'"):
        argument_struct("ds_adm_args")


def test_types_that_cannot_be_passed_are_refused() -> None:
    with pytest.raises(OpError, match="cannot pass the field 'char name'"):
        read_structs("typedef struct a { uint32_t struct_size; char name; } a;")
    with pytest.raises(OpError, match="first field must be"):
        read_structs("typedef struct a { int32_t dtype; } a;")


def test_reserved_fields_are_zero_and_not_asked_for() -> None:
    found = read_structs("typedef struct a { uint32_t struct_size; int32_t reserved; const float* const* x; } a;")["a"]
    assert found.fields == (("x", "P"),)
    assert found(x=7)[4:8] == bytes(4)


def test_a_field_that_may_be_left_out_is_zero() -> None:
    text = "typedef struct a { uint32_t struct_size; int32_t b; /* 1 or 2 */ int32_t format; /* 0 if left out */ } a;"
    found = read_structs(text)["a"]
    assert found(b=1) == found(b=1, format=0) != found(b=1, format=3)
    with pytest.raises(OpError, match="missing b"):
        found(format=1)
