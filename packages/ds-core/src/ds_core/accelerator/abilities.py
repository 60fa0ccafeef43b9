"""What a device can do, for code that has a tensor and no accelerator at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_core.accelerator.selection import in_use

if TYPE_CHECKING:
    import torch

__all__ = ["computes_in"]


def computes_in(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `device` computes in `dtype`: the host in all, another in what the accelerator in use says of itself."""
    import torch

    if device.type in ("cpu", "meta"):
        return True
    accelerator = in_use()
    if accelerator is None or accelerator.device_type != device.type:
        return dtype == torch.float32
    return dtype in accelerator.dtypes()
