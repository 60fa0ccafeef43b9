"""``torch.openbox``: what torch, ds-core and users ask of the device. `device` is the one in use when None."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

Device = int | str | torch.device | None
Present = int | str | torch.device

_initialized = True
"""torch.utils.checkpoint keeps the state of generators only of devices whose module says this."""


class Traffic(NamedTuple):
    """Bytes copied between the host and a device since `reset_traffic`."""

    to_device_bytes: int
    to_host_bytes: int


def is_available() -> bool:
    return True


def is_initialized() -> bool:
    return True


def _is_in_bad_fork() -> bool:
    return False


# ---- devices


def device_count() -> int:
    return int(torch.ops.openbox.device_count())


def current_device() -> int:
    return int(torch.ops.openbox.current_device())


def set_device(device: Present) -> None:
    torch.ops.openbox.set_device(_index(device))


@contextlib.contextmanager
def device(device: Device) -> Iterator[None]:
    """Uses `device` inside."""
    before = current_device()
    torch.ops.openbox.set_device(_index(device))
    try:
        yield
    finally:
        torch.ops.openbox.set_device(before)


def synchronize(device: Device = None) -> None:
    """Returns at once: work is done when its call returns."""


def Event(enable_timing: bool = False) -> torch.Event:
    """A moment of the device's work, which is one on the clock."""
    return torch.Event("openbox", enable_timing=enable_timing)


def get_device_name(device: Device = None) -> str:
    return "Openbox (pretended device)"


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.bfloat16, torch.float16]


# ---- random numbers


def manual_seed(seed: int) -> None:
    torch.ops.openbox.seed(current_device(), seed)


def manual_seed_all(seed: int) -> None:
    for index in range(device_count()):
        torch.ops.openbox.seed(index, seed)


def get_rng_state(device: Device = None) -> torch.Tensor:
    state: torch.Tensor = torch.ops.openbox.rng_state(_index(device))
    return state


def set_rng_state(state: torch.Tensor, device: Device = None) -> None:
    torch.ops.openbox.set_rng_state(_index(device), state)


# ---- memory; figures are those of torch.accelerator


def memory_allocated(device: Device = None) -> int:
    return int(torch.accelerator.memory_allocated(_index(device)))


def max_memory_allocated(device: Device = None) -> int:
    return int(torch.accelerator.max_memory_allocated(_index(device)))


def reset_peak_memory_stats(device: Device = None) -> None:
    torch.accelerator.reset_peak_memory_stats(_index(device))


def mem_get_info(device: Device = None) -> tuple[int, int]:
    """Free and total bytes."""
    free, total = torch.accelerator.get_memory_info(_index(device))
    return int(free), int(total)


def empty_cache() -> None:
    """Returns at once: nothing is cached."""


def set_memory_limit(limit_bytes: int | None, device: Device = None) -> None:
    """Most bytes the device gives out from now on; None for what the host has.

    Taking more raises `torch.OutOfMemoryError`. What is in use already stays.
    """
    if limit_bytes is not None and limit_bytes < 1:
        raise ValueError(f"limit_bytes must be at least 1 or None, got {limit_bytes}")
    torch.ops.openbox.set_memory_limit(_index(device), limit_bytes or 0)


# ---- copies


def traffic(device: Device = None) -> Traffic:
    """Bytes copied between the host and the device since `reset_traffic`."""
    return Traffic(*torch.ops.openbox.traffic(_index(device)))


def reset_traffic(device: Device = None) -> None:
    """Starts counting copied bytes anew."""
    torch.ops.openbox.reset_traffic(_index(device))


def _index(device: Device) -> int:
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    return int(torch.ops.openbox.current_device()) if index is None else int(index)
