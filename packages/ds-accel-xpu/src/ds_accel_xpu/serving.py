"""The ops on the device. Importing this loads the host half of the kernels that fits torch."""

from __future__ import annotations

import torch

from ds_accel_xpu.libraries import library_for, why_no_kernels
from ds_accel_xpu.signs import sycl_of_torch
from ds_core.errors import PluginError
from ds_core.ops.calls import KernelOps, StreamLauncher
from ds_core.ops.native import KernelLibrary

__all__ = ["OPS", "current_queue", "why_not_summed"]


def current_queue(device: torch.device) -> int:
    """Address of the ``sycl::queue`` that torch gives work of this device to."""
    return int(torch.xpu.current_stream(device).sycl_queue)


def why_not_summed(x: torch.Tensor) -> str | None:
    """Why `sum_of_squares` is left to the reference: its result is float64, which others must be able to read."""
    if torch.xpu.get_device_properties(x.device).has_fp64:
        return None
    return "the device has no float64"


def _library() -> KernelLibrary:
    sycl = sycl_of_torch()
    if sycl is None:
        raise PluginError(why_no_kernels() or "torch was built without XPU, so there is no queue to give kernels to")
    return library_for(sycl)


OPS = KernelOps(_library(), StreamLauncher(current_queue, torch.xpu.device))
