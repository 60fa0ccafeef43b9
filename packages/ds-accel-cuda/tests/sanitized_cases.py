"""Run in a process of its own with AddressSanitizer preloaded: all cases of the emulated kernels, or one faulty kernel.

python sanitized_cases.py cases [OP...]
python sanitized_cases.py fault LIBRARY NAME
"""

from __future__ import annotations

import ctypes
import sys


def run_cases(names: list[str]) -> None:
    """The first failure, or the first access that the sanitizer stops at, ends the process."""
    from ds_accel_cuda.libraries import emulated
    from ds_core.ops.calls import HostLauncher, KernelOps
    from ds_core.testing import op_cases

    ops = KernelOps(emulated(sanitized=True), HostLauncher())
    for name in names:
        cases = op_cases.cases(name)
        for case in cases:
            sys.stderr.write(f"case {name} {case.name}\n")  # what it was at, should the process end here
            call = op_cases.build(name, case)
            getattr(ops, name)(**call.tensors, **call.scalars)
        sys.stdout.write(f"{name} {len(cases)}\n")


class Exec(ctypes.Structure):
    """The beginning of ``ds_exec``, and nothing where the rest would be."""

    _fields_ = [("struct_size", ctypes.c_uint32), ("threads", ctypes.c_int32), ("rest", ctypes.c_uint64 * 5)]


def run_fault(library: str, name: str) -> None:
    """A kernel that reads or writes what is not its own."""
    run = ctypes.CDLL(library).dsk_emulation_fault
    x, out = (ctypes.c_float * 1024)(), (ctypes.c_float * 128)()
    context = Exec(struct_size=ctypes.sizeof(Exec), threads=1)
    status = run(name.encode(), ctypes.byref(x), ctypes.byref(out), ctypes.byref(context))
    sys.stdout.write(f"{name} returned {status}\n")


if __name__ == "__main__":
    if sys.argv[1] == "cases":
        run_cases(sys.argv[2:])
    else:
        run_fault(*sys.argv[2:])
