"""The ops of the HIP library of this wheel, on the stream that torch gives work to."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ds_accel_rocm.facts import kernel_mismatches
from ds_accel_rocm.libraries import built
from ds_core.errors import PluginError
from ds_core.ops.calls import KernelOps, StreamLauncher
from ds_core.ops.native import load

__all__ = ["OPS", "supports"]


def _stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


_PATH = built().path
if _PATH is None:
    raise PluginError(f"ds-accel-rocm holds no HIP library: {built().left_out.get('rocm', 'its build left it out')}")
OPS = KernelOps(load(_PATH), StreamLauncher(_stream, torch.cuda.device))


def supports(*arguments: Any, **named: Any) -> str | None:
    """Why the kernels cannot run on the device of the first tensor: there is no code for it. None if they can."""
    tensor = arguments[0] if arguments else next(iter(named.values()))
    return _refusal(tensor.device.index or 0)


@functools.cache
def _refusal(index: int) -> str | None:
    arch = str(torch.cuda.get_device_properties(index).gcnArchName)
    return "; ".join(f"needs {m.needs}, found {m.found}" for m in kernel_mismatches(built(), [arch])) or None
