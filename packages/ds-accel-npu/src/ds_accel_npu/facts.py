"""What ``ds report`` says of Ascend NPUs."""

from __future__ import annotations

from ds_accel_npu.machine import Machine, look
from ds_core.hooks import DeviceFacts, Mismatch

__all__ = ["facts", "mismatches"]

_UNPROVEN = (
    "everything: tested against a stand-in for torch_npu made from its public interface, never on an NPU",
    "hccl; graphs; page-locked copies; views of flat buffers in formats of the device's own",
)


def facts() -> DeviceFacts:
    """See `ds_core.hooks.DeviceFacts`."""
    machine = look()
    return DeviceFacts(
        driver=machine.driver or "none",
        libraries={
            "CANN": machine.toolkit or "none",
            "torch-npu": machine.adapter or "none",
            "torch": machine.torch or "none",
        },
        left_out=["kernels: the last step of Ascend's compiler is part of CANN alone; ops run as torch code"],
        mismatches=mismatches(machine),
        unproven=_UNPROVEN,
    )


def mismatches(machine: Machine) -> list[Mismatch]:
    """torch_npu is made for one minor version of torch."""
    wanted = ".".join(machine.torch.partition("+")[0].split(".")[:2])
    if not machine.adapter:
        remedy = f"pip install torch-npu=={wanted or '2.x'}.*"
        return [Mismatch("torch-npu", "any release", f"the release for torch {wanted or '2.x'}", "none", remedy)]
    if not machine.adapter.startswith(f"{wanted}."):
        remedy = f"pip install torch-npu=={wanted}.*, or the torch that torch-npu {machine.adapter} was made for."
        return [Mismatch("torch-npu", "any release", f"{wanted}.*", machine.adapter, remedy)]
    return []
