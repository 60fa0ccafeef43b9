"""`NpuAccelerator`: Ascend NPUs behind ds-core's contract, answered by `torch_npu.npu`.

Source: the public interface of torch-npu 2.13 and its documentation.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from ds_core.accelerator import Accelerator, Capability
from ds_core.errors import AcceleratorError

if TYPE_CHECKING:
    import torch

__all__ = ["NpuAccelerator"]


class NpuAccelerator(Accelerator):
    """Ascend NPUs.

    Args:
        module: what answers in the place of ``torch_npu.npu``.
    """

    name: ClassVar[str] = "npu"
    device_type: ClassVar[str] = "npu"
    visible_devices_variable: ClassVar[str] = "ASCEND_RT_VISIBLE_DEVICES"
    exported_variables: ClassVar[tuple[str, ...]] = ("ASCEND", "HCCL", "LD_LIBRARY", "PYTHONPATH")
    capabilities = frozenset(
        {
            Capability.STREAMS,
            Capability.EVENTS,
            Capability.PINNED_MEMORY,
            Capability.GRAPHS,
            Capability.ALLOCATOR_STATS,
            Capability.STORAGE_ALIASING,
            Capability.ASYNC_COPY,
            Capability.COLLECTIVES,
            Capability.DATA_PTR,
        }
    )

    def __init__(self, module: ModuleType | None = None) -> None:
        self._module = _adapter() if module is None else module

    def torch_module(self) -> ModuleType:
        """``torch_npu.npu``, or what was passed in its place."""
        return self._module

    def dtypes(self) -> frozenset[torch.dtype]:
        """What every NPU computes in, and bfloat16 where the adapter says so."""
        import torch

        found = {torch.float32, torch.float16, torch.float64}
        found |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
        if self._module.is_bf16_supported():
            found.add(torch.bfloat16)
        return frozenset(found)

    def comm_backend(self) -> str:
        """HCCL, which torch_npu registers when it is imported."""
        return "hccl"

    def properties(self, index: int | None = None) -> Mapping[str, str]:
        """Product and memory."""
        at = self._index(index)
        total = self._module.get_device_properties(at).total_memory
        return {"name": str(self._module.get_device_name(at)), "memory": f"{total / 2**30:.1f} GiB"}

    def graph(self) -> Any:
        """An ``NPUGraph``."""
        return self._module.NPUGraph()


def _adapter() -> ModuleType:
    try:
        return importlib.import_module("torch_npu").npu  # type: ignore[no-any-return]
    except ImportError as error:
        raise AcceleratorError(
            f"accelerator npu needs torch_npu, which cannot be imported ({error}); install torch-npu of torch's "
            "version, and source the set_env.sh of CANN"
        ) from error
