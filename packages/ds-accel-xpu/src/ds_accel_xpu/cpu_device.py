"""For tests: the kernels on a CPU OpenCL device, over tensors in host memory.

Needs a wheel that was built with ``DSK_CPU_QUEUE=ON``, libsycl in the library path, and Intel's OpenCL runtime for CPUs
(the wheel ``intel-opencl-rt``, with ``OCL_ICD_FILENAMES`` set to its libintelocl.so). ``nox -s xpu`` sets that up.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import torch

from ds_accel_xpu.libraries import built, cpu_queue_path, library_for
from ds_core.errors import AcceleratorError
from ds_core.ops.calls import KernelOps, StreamLauncher

__all__ = ["CpuDevice", "why_no_cpu_device"]


def why_no_cpu_device(sycl: str) -> str:
    """What is missing to run the kernels behind one libsycl here; empty when nothing is."""
    if sycl not in built().libraries:
        return f"the wheel has no host half for libsycl {sycl}: {built().left_out.get('sycl', 'not asked for')}"
    if not cpu_queue_path(sycl).is_file():
        return "the wheel was built without DSK_CPU_QUEUE"
    try:
        CpuDevice(sycl)
    except (AcceleratorError, OSError) as error:
        return str(error)
    return ""


class CpuDevice:
    """A queue on the CPU OpenCL device, and the ops on it.

    Args:
        sycl: major version of libsycl.

    Attributes:
        name: of the device and its driver.
        ops: every op of the library. Calls wait until the device is done, for host memory may go away after them.

    Raises:
        AcceleratorError: there is no such device.
        OSError: a library was not found.
    """

    def __init__(self, sycl: str) -> None:
        helper = ctypes.CDLL(str(cpu_queue_path(sycl)))
        helper.dsk_cpu_queue.restype = ctypes.c_void_p
        helper.dsk_wait.argtypes = [ctypes.c_void_p]
        helper.dsk_device_name.restype = ctypes.c_char_p
        helper.dsk_device_name.argtypes = [ctypes.c_void_p]
        queue = helper.dsk_cpu_queue()
        if not queue:
            raise AcceleratorError(
                "there is no CPU OpenCL device. Run: pip install intel-opencl-rt, and set OCL_ICD_FILENAMES to its "
                "libintelocl.so"
            )
        self._helper = helper
        self.queue: int = queue
        self.name: str = helper.dsk_device_name(queue).decode()
        self.ops = KernelOps(library_for(sycl), StreamLauncher(lambda device: queue, self._waiting))

    @contextlib.contextmanager
    def _waiting(self, device: torch.device) -> Iterator[None]:
        yield
        if self._helper.dsk_wait(self.queue):
            raise AcceleratorError("the CPU OpenCL device failed; its message is on stderr")
