"""Running kernels through ctypes, with no binding of the wheel's own: on the host, or on a device's stream."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ds_core.ops.calls.kernels import Run
from ds_core.ops.native import Kernel, kernel_functions

__all__ = ["HostLauncher", "StreamLauncher"]

_INDEX_OUT_OF_RANGE = 5
_MESSAGE_BYTES = 512
_ALIGNMENT = 64

_STATUS = {
    1: "an argument is outside of what the op allows",
    2: "the dtypes are not served",
    3: "the workspace is too small",
    4: "the device runtime failed",
    _INDEX_OUT_OF_RANGE: "an index names no row",
}


class _Exec(ctypes.Structure):
    """``ds_exec`` of ds_kernel.h."""

    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("threads", ctypes.c_int32),
        ("stream", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_uint64),
        ("parallel_for", ctypes.c_void_p),
        ("pool", ctypes.c_void_p),
        ("message", ctypes.c_char_p),
        ("message_bytes", ctypes.c_uint64),
    ]


class HostLauncher:
    """Runs kernels on the calling thread, over host memory: for host kernels, and for emulated device kernels.

    Args:
        threads: that a kernel may start by itself; an emulated one spreads its blocks over them.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def bind(self, kernel: Kernel) -> Run:
        """See `ds_core.ops.calls.Launcher`."""
        return _bind(kernel, self.threads, lambda device: 0, lambda device: nullcontext(), torch.device("cpu"))


class StreamLauncher:
    """Runs kernels on the stream of a device, without waiting for them.

    The workspace is a tensor of the device, given back to its allocator after the launch: the allocator must order
    reuse by stream, as torch's do.

    Args:
        stream: the raw handle of the stream in use on a device.
        guard: a context in which that device is the current one; nothing by default.
    """

    def __init__(
        self,
        stream: Callable[[torch.device], int],
        guard: Callable[[torch.device], AbstractContextManager[Any]] | None = None,
    ) -> None:
        self.stream = stream
        self.guard = guard

    def bind(self, kernel: Kernel) -> Run:
        """See `ds_core.ops.calls.Launcher`."""
        return _bind(kernel, 1, self.stream, self.guard or (lambda device: nullcontext()), None)


def _bind(
    kernel: Kernel,
    threads: int,
    stream: Callable[[torch.device], int],
    guard: Callable[[torch.device], AbstractContextManager[Any]],
    workspace_device: torch.device | None,
) -> Run:
    run, workspace_bytes = kernel_functions(kernel)

    def call(packed: bytes, device: torch.device) -> None:
        needed = 0 if workspace_bytes is None else int(workspace_bytes(packed))
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        with guard(device):
            scratch = _workspace(needed, workspace_device or device)
            context = _Exec(
                struct_size=ctypes.sizeof(_Exec),
                threads=threads,
                stream=stream(device),
                workspace=_aligned(scratch),
                workspace_bytes=needed,
                message=ctypes.cast(message, ctypes.c_char_p),
                message_bytes=_MESSAGE_BYTES,
            )
            status = run(packed, ctypes.byref(context))
        if status:
            _refuse(kernel.name, status, message.value.decode("utf-8", "replace"))

    return call


def _workspace(needed: int, device: torch.device) -> torch.Tensor | None:
    return torch.empty(needed + _ALIGNMENT, dtype=torch.uint8, device=device) if needed else None


def _aligned(scratch: torch.Tensor | None) -> int | None:
    return None if scratch is None else -(-scratch.data_ptr() // _ALIGNMENT) * _ALIGNMENT


def _refuse(name: str, status: int, message: str) -> None:
    text = f"kernel {name} refused the call (status {status}): {_STATUS.get(status, 'unknown status')}"
    text += f": {message}" if message else ""
    if status == _INDEX_OUT_OF_RANGE:
        raise IndexError(text)
    raise RuntimeError(text)
