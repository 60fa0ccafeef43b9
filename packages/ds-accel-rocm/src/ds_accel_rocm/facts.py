"""What ``ds report`` says of AMD GPUs: versions, and everything that does not fit what this wheel was built for."""

from __future__ import annotations

from collections.abc import Sequence

from ds_accel_rocm.libraries import Built, built
from ds_accel_rocm.machine import Driver, find_driver
from ds_core.accelerator.torch_build import TorchBuild, torch_build
from ds_core.hooks import DeviceFacts, Mismatch, Proof
from ds_core.ops.table import OPS

__all__ = ["facts", "kernel_mismatches", "mismatches"]

_UNPROVEN = (
    "kernels: emulated on a CPU with waves of 64 and compiled, never run on a GPU; each is compared with its reference "
    "at first use",
    "handing kernels to the HIP runtime that torch brings: tested against a stand-in for the runtime",
    "streams, events, graphs, pinned memory, rccl: answered by torch.cuda, never run by this project",
)


def facts() -> DeviceFacts:
    """See `ds_core.hooks.DeviceFacts`."""
    record, build, driver = built(), torch_build(), find_driver()
    archs = _architectures(build, driver)
    libraries = {"torch": f"{build.version}, built for HIP {build.hip or 'no version'}"}
    if archs:
        libraries["devices"] = ", ".join(archs)
    return DeviceFacts(
        built_for=f"{record.toolkit} ({', '.join(record.archs)})" if record.path else "",
        driver=str(driver),
        libraries=libraries,
        left_out=[f"{what}: {reason}" for what, reason in record.left_out.items()],
        mismatches=mismatches(record, build, archs),
        unproven=_UNPROVEN,
        kernels={op: Proof.EMULATED for op in OPS if op in record.rows},
    )


def mismatches(record: Built, build: TorchBuild, archs: Sequence[str]) -> list[Mismatch]:
    """Everything that does not fit: torch, then devices."""
    found = []
    if build.hip is None:
        remedy = "Install a ROCm build of torch."
        found.append(Mismatch("torch", "ROCm", "a build with ROCm", build.version or "none", remedy))
    return found + kernel_mismatches(record, archs)


def kernel_mismatches(record: Built, archs: Sequence[str]) -> list[Mismatch]:
    """Devices that the kernels of this wheel have no code for; empty when it has no kernels."""
    if record.path is None:
        return []
    known = ", ".join(record.archs)
    remedy = "Build the wheel with a hipcc that knows the device, and DSK_ROCM_ARCHITECTURES for it."
    return [
        Mismatch(f"device {index}", known, f"one of {known}", arch, remedy)
        for index, arch in enumerate(archs)
        if arch.partition(":")[0] not in record.archs
    ]


def _architectures(build: TorchBuild, driver: Driver) -> list[str]:
    if build.hip is None or driver.error:
        return []
    import torch

    return [str(torch.cuda.get_device_properties(i).gcnArchName) for i in range(torch.cuda.device_count())]
