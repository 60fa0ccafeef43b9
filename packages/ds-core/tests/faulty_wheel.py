"""A wheel whose accelerator has the faults that FAULTS names, for tests of what finds them."""

from __future__ import annotations

from pathlib import Path

PLUGIN = """
import os

from ds_core.hooks import AcceleratorEntry, Availability, OpImpl, hookimpl

DS_HOOK_API = (1, 0)
FAULTS = set(os.environ.get("FAULTS", "").split(","))

if "heavy import" in FAULTS:
    import numpy
if "environment" in FAULTS:
    os.environ["SET_BY_A_VENDOR"] = "1"


def probe():
    if "probe raises" in FAULTS:
        raise OSError("libfaulty.so.2: cannot open shared object file")
    if "probe answers True" in FAULTS:
        return True
    if "not here" in FAULTS:
        return Availability(False, "no device of this kind")
    return Availability(True, device_count=2 if "count" in FAULTS else 1)


@hookimpl
def ds_accelerators():
    return [AcceleratorEntry("faulty", probe, "faulty_accelerator:Faulty", is_floor=True, priority=-1)]


@hookimpl
def ds_ops():
    return [OpImpl("sgd_", "cpu", load="faulty_accelerator:sgd", priority=1000)] if "ulp" in FAULTS else []
"""

ACCELERATOR = """
import ctypes
import os
import time
from typing import ClassVar

import torch

from ds_core.accelerator import Capability, HostAccelerator

FAULTS = set(os.environ.get("FAULTS", "").split(","))


class Faulty(HostAccelerator):
    name: ClassVar[str] = "faulty"

    def __init__(self):
        if "dies when made" in FAULTS:
            ctypes.string_at(0)
        if "claims" in FAULTS:
            self.capabilities = self.capabilities | {Capability.PINNED_MEMORY}
        if "modest" in FAULTS:
            self.capabilities = self.capabilities - {Capability.STORAGE_ALIASING}
        if "aliasing" in FAULTS:
            torch.Tensor.set_ = copying_set
        if "silu" in FAULTS:
            torch.nn.functional.silu = wrong_in_float32

    def properties(self, index=None):
        if "segfault" in FAULTS:
            ctypes.string_at(0)
        return super().properties(index)

    def synchronize(self, index=None):
        if "exit" in FAULTS:
            os._exit(3)

    def rng_state(self, index=None):
        if "hang" in FAULTS:
            time.sleep(1000)
        return super().rng_state(index)

    def set_rng_state(self, state, index=None):
        super().set_rng_state(state, index)
        if "rng" in FAULTS:
            torch.rand(1)

    def to_device(self, tensor, index=None, *, non_blocking=False):
        return tensor.clone() if "copies" in FAULTS else tensor

    def dtypes(self):
        return super().dtypes() - {torch.float64} if "modest" in FAULTS else super().dtypes()


SET = torch.Tensor.set_


def wrong_in_float32(x):
    return torch.sigmoid((1.01 if x.dtype == torch.float32 else 1.0) * x) * x


def copying_set(self, storage, *where):
    return SET(self, storage.clone(), *where)


def sgd(*args, **kwargs):
    from ds_core.ops.table import op

    op("sgd_").definition().reference(*args, **kwargs)
    param = kwargs["param"] if "param" in kwargs else args[0]
    if param.numel():
        first = param.view(-1)[:1]
        first.copy_(torch.nextafter(first, torch.full_like(first, float("inf"))))
"""

METADATA = """\
Metadata-Version: 2.1
Name: ds-accel-faulty
Version: 0.3
Summary: An accelerator with faults on purpose
Requires-Python: >=3.10
Requires-Dist: ds-core{requirement}
"""


def write_wheel(site: Path, *, requirement: str = "~=0.1", tag: str = "py3-none-any") -> Path:
    """What an installed wheel leaves in `site`, to be put on PYTHONPATH."""
    info = site / "ds_accel_faulty-0.3.dist-info"
    info.mkdir(parents=True)
    (site / "faulty_plugin.py").write_text(PLUGIN)
    (site / "faulty_accelerator.py").write_text(ACCELERATOR)
    (info / "METADATA").write_text(METADATA.format(requirement=requirement))
    (info / "WHEEL").write_text(f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
    (info / "entry_points.txt").write_text("[ds_core.plugins]\nfaulty = faulty_plugin\n")
    (info / "RECORD").write_text("faulty_plugin.py,,\nfaulty_accelerator.py,,\n")
    return site


def environ(site: Path, *faults: str) -> dict[str, str]:
    """Variables of a process that has the wheel, with these faults, and nothing but core besides."""
    return {
        "PYTHONPATH": str(site),
        "DS_PLUGINS": "ds-accel-faulty",
        "FAULTS": ",".join(faults),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
