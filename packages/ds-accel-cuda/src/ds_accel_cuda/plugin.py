"""What ds-accel-cuda brings to ds-core: NVIDIA GPUs, and kernels for their ops."""

from __future__ import annotations

from collections.abc import Iterable

from ds_core.hooks import AcceleratorEntry, Availability, OpImpl, Proof, hookimpl

DS_HOOK_API = (1, 2)


def _is_available() -> Availability:
    from ds_accel_cuda.machine import find_driver, refusal
    from ds_core.accelerator.torch_build import torch_build

    build, driver = torch_build(), find_driver()
    reason = refusal(build, driver)
    if reason:
        return Availability(False, reason)
    import torch

    count = torch.cuda.device_count()
    reason = refusal(build, driver, count)
    return Availability(not reason, reason, count)


@hookimpl
def ds_accelerators() -> Iterable[AcceleratorEntry]:
    """NVIDIA GPUs through torch.cuda."""
    return [
        AcceleratorEntry(
            "cuda",
            is_available=_is_available,
            factory="ds_accel_cuda.accelerator:CudaAccelerator",
            device_nodes=("/dev/nvidia[0-9]*", "/dev/nvhost-gpu", "/dev/dxg"),
            facts="ds_accel_cuda.facts:facts",
        )
    ]


@hookimpl
def ds_ops() -> Iterable[OpImpl]:
    """The kernels of the CUDA library, if this wheel was built with one."""
    from ds_accel_cuda.libraries import built
    from ds_core.ops.table import OPS

    if not built().cuda:
        return []
    supports = "ds_accel_cuda.serving:supports"
    return [
        OpImpl(
            op,
            "cuda",
            load=f"ds_accel_cuda.serving:OPS.{op}",
            supports=supports,
            proof=Proof.EMULATED,
            accelerator="cuda",
        )
        for op in built().rows
        if op in OPS
    ]
