"""What memory is in use, said when asked."""

from __future__ import annotations

import logging
from pathlib import Path

from ds_core import accelerator as accelerators

__all__ = ["empty_cache", "memory_status", "see_memory_usage"]

logger = logging.getLogger(__name__)
GIB = 1024**3


def _rank() -> int:
    from ds_core import comm

    return comm.get_rank() if comm.is_initialized() else 0


def _host_bytes() -> tuple[int, int]:
    """Bytes of this process in memory, and of the machine's memory that are free; 0 where /proc does not say."""
    resident = available = 0
    for path, label in ((Path("/proc/self/status"), "VmRSS:"), (Path("/proc/meminfo"), "MemAvailable:")):
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        found = next((int(line.split()[1]) * 1024 for line in lines if line.startswith(label)), 0)
        if label == "VmRSS:":
            resident = found
        else:
            available = found
    return resident, available


def see_memory_usage(message: str, force: bool = False) -> None:
    """Logs device and host memory on the first rank. Says nothing unless `force`."""
    if not force or _rank() != 0:
        return
    memory = accelerators.current().memory()
    figures = {"allocated": memory.allocated_bytes, "peak": memory.peak_bytes, "reserved": memory.reserved_bytes}
    known = [f"{name} {value / GIB:.2f} GiB" for name, value in figures.items() if value is not None]
    resident, available = _host_bytes()
    host = f"host: process {resident / GIB:.2f} GiB, available {available / GIB:.2f} GiB"
    logger.info("%s | %s", message, "; ".join([f"device: {', '.join(known) or 'no figures'}", host]))


def memory_status(msg: str, print_rank: int = -1, reset_max: bool = False) -> None:
    """Logs the memory in use on one rank, or on all with -1; `reset_max` starts a new peak."""
    device = accelerators.current()
    if reset_max:
        device.reset_peak_memory()
    if print_rank not in (-1, _rank()):
        return
    memory = device.memory()
    logger.info("[rank %d] %s: allocated %s bytes, peak %s", _rank(), msg, memory.allocated_bytes, memory.peak_bytes)


def empty_cache() -> None:
    """Gives memory that nothing holds back to the system."""
    accelerators.current().empty_cache()
