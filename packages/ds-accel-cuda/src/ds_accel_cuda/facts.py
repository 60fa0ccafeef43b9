"""What ``ds report`` says of NVIDIA GPUs: versions, and everything that does not fit what this wheel was built for."""

from __future__ import annotations

from collections.abc import Sequence

from ds_accel_cuda.libraries import Built, CudaBuild, built
from ds_accel_cuda.machine import Driver, find_driver
from ds_core.accelerator.torch_build import TorchBuild, torch_build
from ds_core.hooks import DeviceFacts, Mismatch, Proof
from ds_core.ops.table import OPS

__all__ = ["choose_build", "facts", "kernel_mismatches", "mismatches"]

LEAST_DRIVER = {12: "525", 13: "580"}
"""Least driver of a CUDA major version. Source: CUDA release notes, minor version compatibility."""

_UNPROVEN = (
    "kernels: emulated on a CPU and compiled, never run on a GPU; each is compared with its reference at first use",
    "streams, events, graphs, pinned memory, nccl: answered by torch.cuda, never run by this project",
)


def facts() -> DeviceFacts:
    """See `ds_core.hooks.DeviceFacts`."""
    record, build, driver = built(), torch_build(), find_driver()
    capabilities = _capabilities(build, driver)
    return DeviceFacts(
        built_for=_built_for(record),
        driver=str(driver),
        libraries=_libraries(build, capabilities),
        left_out=[f"{kind}: {reason}" for kind, reason in record.left_out.items()],
        mismatches=mismatches(record, build, driver, capabilities),
        unproven=_UNPROVEN,
        kernels={op: Proof.EMULATED for op in OPS if op in record.rows},
    )


def mismatches(
    record: Built, build: TorchBuild, driver: Driver, capabilities: Sequence[tuple[int, int]]
) -> list[Mismatch]:
    """Everything that does not fit, torch first, then the driver, then devices.

    Args:
        record: what the wheel holds.
        build: of the installed torch.
        driver: of this machine.
        capabilities: compute capability of each device.
    """
    found = []
    if build.cuda is None:
        remedy = "Install a CUDA build of torch." if build.hip is None else "Use ds-accel-rocm."
        found.append(Mismatch("torch", "CUDA", "a build with CUDA", build.version or "none", remedy))
    chosen = choose_build(record, driver)
    return found if chosen is None else found + kernel_mismatches(chosen, driver, capabilities)


def choose_build(record: Built, driver: Driver) -> CudaBuild | None:
    """The library for this driver: of the newest CUDA that it runs, else the oldest. None if the wheel has none."""
    majors = sorted(record.cuda)
    fitting = [major for major in majors if not driver.error and major <= driver.cuda[0]]
    return record.cuda[(fitting[-1:] or majors[:1])[0]] if majors else None


def kernel_mismatches(build: CudaBuild, driver: Driver, capabilities: Sequence[tuple[int, int]]) -> list[Mismatch]:
    """Why the kernels of one library cannot run here; empty when they can."""
    major = int(build.toolkit.partition(".")[0])
    found = []
    if driver.error or driver.cuda[0] < major:
        least = LEAST_DRIVER.get(major, "newer")
        needs = f"driver {least} or newer, which runs CUDA {major}"
        remedy = f"Install driver {least} or newer."
        found.append(Mismatch("NVIDIA driver", f"CUDA {build.toolkit}", needs, str(driver), remedy))
    covered = [_number(name) for name in build.sass]
    portable = _number(build.ptx) if build.ptx else None
    for index, capability in enumerate(capabilities):
        if not _covers(covered, portable, capability):
            needs = f"compute capability {_dotted(min(covered))} or newer"
            what = f"device {index}"
            remedy = "Use another device, or build the wheel with DSK_CUDA_ARCHITECTURES for this one."
            found.append(Mismatch(what, ", ".join(build.sass), needs, _dotted(capability), remedy))
    return found


def _covers(sass: Sequence[tuple[int, int]], ptx: tuple[int, int] | None, device: tuple[int, int]) -> bool:
    # Machine code runs on its own major version from its minor version on; PTX on everything newer.
    return any(a[0] == device[0] and a[1] <= device[1] for a in sass) or (ptx is not None and device >= ptx)


def _number(name: str) -> tuple[int, int]:
    digits = name.rpartition("_")[2].rstrip("af")
    return int(digits[:-1]), int(digits[-1])


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _built_for(record: Built) -> str:
    parts = []
    for build in record.cuda.values():
        portable = f" and PTX of {build.ptx}" if build.ptx else ""
        parts.append(f"CUDA {build.toolkit} ({', '.join(build.sass)}{portable})")
    return ", ".join(parts)


def _capabilities(build: TorchBuild, driver: Driver) -> list[tuple[int, int]]:
    if build.cuda is None or driver.error:
        return []
    import torch

    return [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]


def _libraries(build: TorchBuild, capabilities: Sequence[tuple[int, int]]) -> dict[str, str]:
    found = {"torch": f"{build.version}, built for CUDA {build.cuda or 'no version'}"}
    if capabilities:
        import torch

        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        found["devices"] = ", ".join(torch.cuda.get_device_name(index) for index in range(len(capabilities)))
    return found
