"""The ops that this device serves itself, in C. All others run as core's references do: slow, correct.

The library has the op table of ``ds_kernel.h``; core packs the arguments and calls it. A device with streams takes
`StreamLauncher` in place of the one for memory that the host can read.
"""

from __future__ import annotations

from pathlib import Path

from ds_core.ops.calls import HostLauncher, KernelOps
from ds_core.ops.native import load

__all__ = ["LIBRARY", "OPS"]

LIBRARY = Path(__file__).parent / "lib" / "libopenbox_kernels.so"

OPS = KernelOps(load(LIBRARY), HostLauncher())
"""Imported at the first call of an op."""
