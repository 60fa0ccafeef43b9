"""``torch.xpu`` with a machine behind it, from torch's public documentation: devices, memory, streams, random numbers.

A test checks that each function has the parameters that the installed torch gives it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

GIB = 1 << 30


@dataclass
class Properties:
    """Some of what ``get_device_properties`` documents."""

    name: str = "Intel(R) Data Center GPU Max 1550"
    platform_name: str = "Intel(R) oneAPI Unified Runtime over Level-Zero"
    driver_version: str = "1.6.33578"
    max_compute_units: int = 448
    total_memory: int = 64 * GIB
    has_fp64: bool = True
    is_integrated_gpu: bool = False


@dataclass
class Device:
    """One device of the machine."""

    properties: Properties = field(default_factory=Properties)
    allocated: int = 0
    peak: int = 0
    waits: int = 0
    rng: torch.Tensor = field(default_factory=lambda: torch.zeros(16, dtype=torch.uint8))


class FakeXpu:
    """The module; ``log`` has what was asked of it beside figures."""

    def __init__(self, count: int = 2, **properties: Any) -> None:
        self.devices = [Device(Properties(**properties)) for _ in range(count)]
        self.current = 0
        self.streams: list[str] = ["default"]
        self.log: list[str] = []

    def _at(self, device: int | None) -> Device:
        return self.devices[self.current if device is None else device]

    def device_count(self) -> int:
        return len(self.devices)

    def current_device(self) -> int:
        return self.current

    def set_device(self, device: int) -> None:
        self.current = device

    def synchronize(self, device: int | None = None) -> None:
        self._at(device).waits += 1

    def get_device_name(self, device: int | None = None) -> str:
        return self._at(device).properties.name

    def get_device_properties(self, device: int | None = None) -> Properties:
        return self._at(device).properties

    def get_rng_state(self, device: int | str | torch.device = "xpu") -> torch.Tensor:
        assert isinstance(device, int)
        return self.devices[device].rng.clone()

    def set_rng_state(self, new_state: torch.Tensor, device: int | str | torch.device = "xpu") -> None:
        assert isinstance(device, int)
        self.devices[device].rng = new_state.clone()

    def manual_seed_all(self, seed: int) -> None:
        for device in self.devices:
            device.rng = torch.full((16,), seed % 256, dtype=torch.uint8)

    def memory_allocated(self, device: int | None = None) -> int:
        return self._at(device).allocated

    def max_memory_allocated(self, device: int | None = None) -> int:
        return self._at(device).peak

    def reset_peak_memory_stats(self, device: int | None = None) -> None:
        self._at(device).peak = self._at(device).allocated

    def mem_get_info(self, device: int | None = None) -> tuple[int, int]:
        found = self._at(device)
        return found.properties.total_memory - found.allocated, found.properties.total_memory

    def empty_cache(self) -> None:
        self.log.append("empty_cache")

    def allocate(self, count: int, device: int = 0) -> None:
        """What making a tensor does. Not of torch."""
        found = self.devices[device]
        found.allocated += count
        found.peak = max(found.peak, found.allocated)

    class Stream:
        """A queue of one device."""

        def __init__(self, device: Any = None, priority: int = 0) -> None:
            self.sycl_queue = id(self)

    class Event:
        """A marker in a stream."""

        def __init__(self, enable_timing: bool = False) -> None:
            self.enable_timing = enable_timing

    @contextlib.contextmanager
    def stream(self, stream: Stream | None) -> Iterator[None]:
        self.log.append("stream entered")
        yield
        self.log.append("stream left")
