"""Whether io_uring can be used by this process, decided when it runs."""

from __future__ import annotations

import functools
import importlib.util

__all__ = ["refusal"]


@functools.cache
def refusal() -> str:
    """Why io_uring cannot be used here; empty when it can.

    Asked of the kernel once: it may be too old, or a container's seccomp filter or kernel.io_uring_disabled forbid it.
    """
    if importlib.util.find_spec("ds_accel_cpu._aio") is None:
        return "this build of ds-accel-cpu has no io_uring: it was not built for Linux"
    from ds_accel_cpu import _aio

    return _aio.refusal()
