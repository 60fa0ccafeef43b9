"""Lets kernels run on the threads of torch's OpenMP runtime; Note [Whose threads] in csrc/binding/pool.h says why."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch

from ds_accel_cpu import _binding

__all__ = ["borrow_from_torch", "loaded_libgomp"]

_MAPS = Path("/proc/self/maps")


def borrow_from_torch() -> bool:
    """True when kernels run on torch's threads from now on; False when torch uses another runtime than libgomp."""
    path = loaded_libgomp(_MAPS.read_text()) if sys.platform == "linux" else None
    if path is None:
        return False
    try:
        runtime = ctypes.CDLL(path, mode=os.RTLD_LAZY | os.RTLD_NOLOAD)
        address = ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return False
    _binding.borrow_threads(address or 0)
    return _binding.is_borrowing()


def loaded_libgomp(maps: str) -> str | None:
    """The libgomp that torch runs on, among the files mapped into this process; None when there is none, or a doubt.

    Args:
        maps: text of ``/proc/self/maps``.
    """
    fields = (line.split(maxsplit=5) for line in maps.splitlines())
    mapped = {field[5] for field in fields if len(field) == 6 and Path(field[5]).name.startswith("libgomp")}
    homes = [Path(torch.__file__).parent, Path(torch.__file__).parent.with_name("torch.libs")]
    own = {path for path in mapped if any(home in Path(path).parents for home in homes)}
    found = own or mapped  # a torch built from source runs on the system's
    return next(iter(found)) if len(found) == 1 else None
