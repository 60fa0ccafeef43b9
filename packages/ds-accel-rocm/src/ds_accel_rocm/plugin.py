"""What ds-accel-rocm brings to ds-core: AMD GPUs, and kernels for their ops."""

from __future__ import annotations

from collections.abc import Iterable

from ds_core.hooks import AcceleratorEntry, Availability, OpImpl, Proof, hookimpl

DS_HOOK_API = (1, 2)


def _is_available() -> Availability:
    from ds_accel_rocm.machine import find_driver, refusal
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
    """AMD GPUs through the torch.cuda of a ROCm build."""
    return [
        AcceleratorEntry(
            "rocm",
            is_available=_is_available,
            factory="ds_accel_rocm.accelerator:RocmAccelerator",
            device_nodes=("/dev/kfd",),
            impersonates=("cuda",),
            facts="ds_accel_rocm.facts:facts",
        )
    ]


@hookimpl
def ds_ops() -> Iterable[OpImpl]:
    """The kernels of the HIP library, if this wheel was built with one."""
    from ds_accel_rocm.libraries import built
    from ds_core.ops.table import OPS

    if built().path is None:
        return []
    return [
        OpImpl(
            op,
            "cuda",
            load=f"ds_accel_rocm.serving:OPS.{op}",
            supports="ds_accel_rocm.serving:supports",
            proof=Proof.EMULATED,
            accelerator="rocm",
        )
        for op in built().rows
        if op in OPS
    ]
