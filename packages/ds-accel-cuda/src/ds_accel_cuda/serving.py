"""The ops of the CUDA library of this wheel, on the stream that torch gives work to."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ds_accel_cuda.facts import choose_build, kernel_mismatches
from ds_accel_cuda.libraries import built
from ds_accel_cuda.machine import find_driver
from ds_core.errors import PluginError
from ds_core.ops.calls import KernelOps, StreamLauncher
from ds_core.ops.native import load

__all__ = ["OPS", "supports"]


def _stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


_DRIVER = find_driver()
_BUILD = choose_build(built(), _DRIVER)
if _BUILD is None:
    raise PluginError(f"ds-accel-cuda holds no CUDA library: {built().left_out.get('cuda', 'its build left it out')}")
OPS = KernelOps(load(_BUILD.path), StreamLauncher(_stream, torch.cuda.device))


def supports(*arguments: Any, **named: Any) -> str | None:
    """Why the kernels cannot run on the device of the first tensor: it, or the driver, is too old. None if they can."""
    tensor = arguments[0] if arguments else next(iter(named.values()))
    return _refusal(tensor.device.index or 0)


@functools.cache
def _refusal(index: int) -> str | None:
    assert _BUILD is not None  # or this module could not be imported
    found = kernel_mismatches(_BUILD, _DRIVER, [torch.cuda.get_device_capability(index)])
    return "; ".join(f"{m.what}: needs {m.needs}, found {m.found}" for m in found) or None
