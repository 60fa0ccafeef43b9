"""The ops of a kernel library over kernels that run elsewhere.

Note [Whatever an op calls]
    The code of `ds_core.ops.calls` runs here, unchanged. Where it would call a kernel it calls an `EmulatedKernel`,
    which sends the argument struct and every storage that the struct points into, and writes back what the kernel made
    of them. Which storage an address lies in is looked up among all tensors alive, so a new op needs no line here.
"""

from __future__ import annotations

import ctypes
import gc
import re
import struct
import sys
from array import array
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from ds_core.ops.arguments import argument_struct
from ds_core.ops.calls import HostLauncher, KernelOps
from ds_core.ops.native import include_dir
from emulation.runner import Buffer, Pointer, Runner

__all__ = ["EmulatedKernel", "EmulatedOps"]

_STRUCT = re.compile(r"typedef struct (\w+) \{(.*?)\} \1;", re.DOTALL)
_TABLE = re.compile(r"\*\s*(?:const\s*)?\*\s*(\w+);")
_WORD = struct.Struct("<Q")


class EmulatedKernel:
    """Stands where a `ds_core.ops.calls.CallableKernel` would.

    Args:
        runner: makes the calls.
        called: gets the name when it is called.
        name: of the row of the op table.
        struct_name: as for `CallableKernel`.
    """

    def __init__(self, runner: Runner, called: set[str], name: str, struct_name: str | None = None) -> None:
        self._runner = runner
        self._called = called
        self._name = name
        self._struct = argument_struct(struct_name or f"ds_{name.rstrip('_')}_args")

    def __call__(self, device: torch.device, /, **arguments: Any) -> None:
        """Runs it.

        Raises:
            RunnerError: it failed there.
            LookupError: an address is in no tensor that is alive, and in no array among the callers' variables.
        """
        self._called.add(self._name)
        call = _Call(self._struct(**arguments))
        tables = _tables()[self._struct.name]
        for field, at in self._addresses():
            if arguments[field]:
                call.point(0, at, arguments[field], f"{self._name}: {field}", field in tables)
        call.run(self._runner, self._name)

    def _addresses(self) -> Iterator[tuple[str, int]]:
        """Pointer fields and where they lie in the struct: found by packing a struct with nothing else in it."""
        zeros = {field: 0 for field, _ in self._struct.fields}
        empty = self._struct(**zeros)
        for field, code in self._struct.fields:
            if code == "P":
                marked = self._struct(**{**zeros, field: 2**64 - 1})
                yield field, next(i for i, (a, b) in enumerate(zip(empty, marked, strict=True)) if a != b)


class EmulatedOps(KernelOps):
    """The ops with their kernels behind a `Runner`; `called` names the kernels that were called."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.called: set[str] = set()
        super().__init__(None, HostLauncher())  # type: ignore[arg-type]  # the library is not in this process

    def kernel(self, name: str, struct: str | None = None) -> Any:
        """A row of the library there."""
        return EmulatedKernel(self._runner, self.called, name, struct)


class _Call:
    """Buffers and pointers of one call. Buffer 0 is the argument struct."""

    def __init__(self, arguments: bytes) -> None:
        self._arguments = arguments
        self._storages = _live_storages()
        self._numbers: dict[int, int] = {}
        self._pointers: list[Pointer] = []

    def point(self, within: int, at: int, address: int, what: str, is_table: bool) -> None:
        """Notes that byte `at` of a buffer holds an address; with `is_table` there are addresses to tensors there."""
        start = self._start_of(address, what)
        is_new = start not in self._numbers
        number = self._numbers.setdefault(start, len(self._numbers) + 1)
        self._pointers.append(Pointer(within, number, at, address - start))
        if is_table and is_new:
            contents = ctypes.string_at(start, self._storages[start])
            for place in range(address - start, len(contents) - 7, 8):
                (entry,) = _WORD.unpack_from(contents, place)
                if entry:
                    self.point(number, place, entry, f"{what}[{(place - address + start) // 8}]", False)

    def run(self, runner: Runner, name: str) -> None:
        """Makes the call and writes back what changed."""
        buffers = [Buffer(self._arguments, 0)]
        buffers += [Buffer(ctypes.string_at(start, self._storages[start]), start) for start in self._numbers]
        tables = {pointer.within for pointer in self._pointers} - {0}
        for number, after in enumerate(runner.call(name, buffers, self._pointers), start=1):
            if number not in tables:
                ctypes.memmove(buffers[number].address, after, len(after))

    def _start_of(self, address: int, what: str) -> int:
        for start, size in self._storages.items():
            if start <= address < start + size:
                return start
        raise LookupError(f"{what}: {address:#x} is in no tensor that is alive, and in no array of the callers")


def _live_storages() -> dict[int, int]:
    """Bytes by address, of every storage on the host that some tensor alive refers to, and of arrays of callers."""
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            if storage.nbytes():
                found[storage.data_ptr()] = storage.nbytes()
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_name not in ("_run_op", "check_kernel"):
        for value in frame.f_locals.values():  # the garbage collector does not know these
            if isinstance(value, array):
                start, length = value.buffer_info()
                found[start] = length * value.itemsize
            elif isinstance(value, ctypes.Array):
                found[ctypes.addressof(value)] = ctypes.sizeof(value)
        frame = frame.f_back
    found.pop(0, None)
    return found


@cache
def _tables() -> dict[str, set[str]]:
    """Fields of each struct that point to addresses."""
    text = "".join(header.read_text() for header in (include_dir() / "ds_kernel").glob("*.h"))
    return {name: set(_TABLE.findall(body)) for name, body in _STRUCT.findall(text)}
