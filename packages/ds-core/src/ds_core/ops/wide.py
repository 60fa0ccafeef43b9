"""The widest floating-point dtype of a device, for sums that must not lose anything."""

from __future__ import annotations

from functools import cache

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

__all__ = ["wide_dtype"]


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64; float32 on a device that cannot add in float64, which is tried once a process."""
    return torch.float64 if device.type == "meta" or _adds_in_float64(device.type) else torch.float32


@cache
def _adds_in_float64(device_type: str) -> bool:
    try:
        with unset_fake_temporarily():
            one = torch.ones((), dtype=torch.float64, device=device_type)
            return bool((one + 2.0**-40).item() == 1 + 2.0**-40)
    except (RuntimeError, TypeError, NotImplementedError):
        return False
