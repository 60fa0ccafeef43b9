"""What ``ds report`` says of Intel GPUs: driver, loader, torch, kernels, what does not fit, what nobody has seen."""

from __future__ import annotations

from ds_accel_xpu.libraries import Built, built
from ds_accel_xpu.plugin import OPS
from ds_accel_xpu.signs import Signs, read_signs, sycl_of_torch, why_unusable
from ds_core.hooks import DeviceFacts, Mismatch, Proof

__all__ = ["UNPROVEN", "describe", "facts"]

UNPROVEN = (
    "kernels ran on a CPU OpenCL device (Intel's), never on a GPU: results, speed and compile time there are unknown",
    "the host half was given queues that it made itself, never the sycl_queue of a torch.xpu stream",
    "memory figures, streams, events, pinned memory and graphs were tested against a fake of torch.xpu",
    "collectives over xccl never ran",
    "that an index out of range is told of at the next call was not seen: a CPU device tells at once",
)
"""Claims that only hardware can prove."""


def facts() -> DeviceFacts:
    """Of this machine. Imports no torch."""
    return describe(read_signs(), sycl_of_torch(), built())


def describe(signs: Signs, sycl: str | None, record: Built) -> DeviceFacts:
    """Of a machine with these signs, whose torch uses that libsycl, and of that build of the wheel."""
    built_for = ""
    if record.spirv:
        halves = ", ".join(record.sycl.values()) or "no libsycl"
        built_for = f"SPIR-V 1.2 ({record.spirv_tools}), {halves}"
    return DeviceFacts(
        built_for=built_for,
        driver=signs.kernel_driver or "none",
        libraries={
            "Level Zero loader": "found" if signs.loader else "none",
            "torch": f"{signs.torch_version or 'none'}{f', libsycl {sycl}' if sycl else ', without XPU'}",
            "collectives": "xccl where torch has it, else gloo through the host",
        },
        left_out=[f"{what}: {why}" for what, why in record.left_out.items()],
        mismatches=_mismatches(signs, sycl, record),
        unproven=UNPROVEN,
        kernels=dict.fromkeys(OPS, Proof.EXECUTED),
    )


def _mismatches(signs: Signs, sycl: str | None, record: Built) -> list[Mismatch]:
    found = []
    if not signs.torch_xpu:
        found.append(
            Mismatch(
                "torch",
                "torch.xpu",
                "a build of torch for XPU, 2.10 or newer",
                f"{signs.torch_version or 'none'}, without XPU",
                why_unusable(Signs(torch_version=signs.torch_version)).partition(". ")[2],
            )
        )
    if sycl is not None and record.libraries and sycl not in record.libraries:
        needed = " or ".join(record.libraries)
        found.append(
            Mismatch(
                "libsycl",
                ", ".join(record.sycl.values()),
                f"libsycl {needed}",
                f"libsycl {sycl}",
                f"Install a ds-accel-xpu that was built against libsycl {sycl}; until then the reference serves.",
            )
        )
    reason = why_unusable(signs)
    if signs.torch_xpu and reason:
        what, _, remedy = reason.partition(". ")
        found.append(Mismatch("driver", "Level Zero", "Intel's GPU driver and its loader", what, remedy))
    return found
