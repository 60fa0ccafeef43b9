"""Loading a library of kernels: the descriptor is read and checked before anything of it is called."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ds_core.errors import PluginError

__all__ = [
    "ABI",
    "DTYPE_CODES",
    "Kernel",
    "KernelLibrary",
    "include_dir",
    "kernel_functions",
    "load",
    "read_descriptor",
]

ABI = (1, 1)
"""(major, minor) of ds_kernel.h that this ds-core reads. Another major is refused, a newer minor is fine."""

MAGIC = 0x314B5344
SYMBOL = "ds_kernel_descriptor"
FLAG_DETERMINISTIC = 1

DTYPE_CODES: Mapping[str, int] = {
    "float32": 1,
    "bfloat16": 2,
    "float16": 3,
    "float64": 4,
    "int8": 5,
    "uint8": 6,
    "int32": 7,
    "int64": 8,
    "bool": 9,
}
"""Name of a torch dtype to its code in ds_kernel.h."""


class _Entry(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("version", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("run", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_void_p),
    ]


class _Head(ctypes.Structure):
    """The part of the descriptor that no ABI version may move."""

    _fields_ = [
        ("magic", ctypes.c_uint32),
        ("abi_major", ctypes.c_uint16),
        ("abi_minor", ctypes.c_uint16),
        ("struct_size", ctypes.c_uint32),
    ]


class _Descriptor(ctypes.Structure):
    _fields_ = [
        ("magic", ctypes.c_uint32),
        ("abi_major", ctypes.c_uint16),
        ("abi_minor", ctypes.c_uint16),
        ("struct_size", ctypes.c_uint32),
        ("entry_size", ctypes.c_uint32),
        ("entry_count", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("target", ctypes.c_char_p),
        ("build", ctypes.c_char_p),
        ("entries", ctypes.c_void_p),
    ]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One row of a library's op table. `address` is the address of the row itself, for a binding to call through."""

    name: str
    version: int
    deterministic: bool
    address: int


@dataclass(frozen=True, slots=True)
class KernelLibrary:
    """A loaded and checked library. It stays loaded for the life of the process."""

    path: Path
    abi: tuple[int, int]
    target: str
    build: str
    kernels: Mapping[str, Kernel]


def kernel_functions(kernel: Kernel) -> tuple[Callable[..., int], Callable[..., int] | None]:
    """``run(arguments, exec)`` and ``workspace_bytes(arguments)`` of a row; the latter may be absent."""
    entry = _Entry.from_address(kernel.address)
    run = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_char_p, ctypes.c_void_p)(entry.run)
    if not entry.workspace_bytes:
        return run, None
    return run, ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_char_p)(entry.workspace_bytes)


def include_dir() -> Path:
    """The directory that holds ``ds_kernel.h``, for a vendor's build."""
    return Path(__file__).resolve().parent.parent / "include"


def load(path: str | os.PathLike[str]) -> KernelLibrary:
    """Loads the library at `path` and reads its op table.

    Raises:
        PluginError: the file is missing, cannot be loaded here, exports no descriptor, or was built for another ABI.
    """
    path = Path(path).resolve()  # a bare file name would be searched for instead of opened
    if not path.is_file():
        raise PluginError(f"kernel library {path} does not exist. Reinstall the wheel that brings it.")
    try:
        # RTLD_LOCAL: its symbols must not meet those of another wheel.
        library = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL if sys.platform != "win32" else 0)
    except OSError as error:
        raise PluginError(f"kernel library {path} cannot be loaded: {error}") from error
    try:
        entry_point = library[SYMBOL]
    except AttributeError as error:
        raise PluginError(
            f"kernel library {path} exports no {SYMBOL!r}. Build it against ds_kernel.h from "
            f"ds_core.include_dir(), and export that one symbol."
        ) from error
    entry_point.restype = ctypes.c_void_p
    entry_point.argtypes = []
    return read_descriptor(entry_point(), path)


def read_descriptor(address: int | None, path: Path) -> KernelLibrary:
    """The descriptor at `address`, checked; `path` is for messages."""
    if not address:
        raise PluginError(f"kernel library {path}: {SYMBOL}() returned NULL, expected the address of a descriptor.")
    head = _Head.from_address(address)
    if head.magic != MAGIC:
        raise PluginError(
            f"kernel library {path}: the descriptor begins with {head.magic:#010x}, expected {MAGIC:#010x} "
            f"(DS_KERNEL_MAGIC). It is not a kernel library, or was built for another byte order."
        )
    if head.abi_major != ABI[0]:
        older = head.abi_major < ABI[0]
        raise PluginError(
            f"kernel library {path} was built for kernel ABI {head.abi_major}.{head.abi_minor}; this ds-core reads "
            f"{ABI[0]}.{ABI[1]}. " + ("Upgrade the wheel that brings it." if older else "Upgrade ds-core.")
        )
    if head.struct_size < ctypes.sizeof(_Descriptor):
        raise PluginError(
            f"kernel library {path}: its descriptor has {head.struct_size} bytes, ABI {ABI[0]} needs at least "
            f"{ctypes.sizeof(_Descriptor)}. Build it again with the ds_kernel.h of its ABI version."
        )
    descriptor = _Descriptor.from_address(address)
    if descriptor.entry_size < ctypes.sizeof(_Entry):
        raise PluginError(
            f"kernel library {path}: a row of its op table has {descriptor.entry_size} bytes, ABI {ABI[0]} needs at "
            f"least {ctypes.sizeof(_Entry)}. Build it again with the ds_kernel.h of its ABI version."
        )
    return KernelLibrary(
        path=path,
        abi=(descriptor.abi_major, descriptor.abi_minor),
        target=_text(descriptor.target),
        build=_text(descriptor.build),
        kernels=_read_table(descriptor, path),
    )


def _read_table(descriptor: _Descriptor, path: Path) -> dict[str, Kernel]:
    kernels: dict[str, Kernel] = {}
    for index in range(descriptor.entry_count):
        address = descriptor.entries + index * descriptor.entry_size
        entry = _Entry.from_address(address)
        name = _text(entry.name)
        if not name or not entry.run:
            raise PluginError(f"kernel library {path}: row {index} of its op table has no name or no function.")
        if name in kernels:
            raise PluginError(f"kernel library {path}: its op table lists {name!r} twice.")
        kernels[name] = Kernel(name, entry.version, bool(entry.flags & FLAG_DETERMINISTIC), address)
    return kernels


def _text(value: bytes | None) -> str:
    return value.decode("utf-8", "replace") if value else ""
