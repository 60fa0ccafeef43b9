"""The ops of ds-core on the CPU: torch tensors in, raw addresses out to the kernels. Arguments were checked already."""

from __future__ import annotations

from ds_accel_cpu.ops.activation import ActivationOps
from ds_accel_cpu.ops.loss import LossOps
from ds_accel_cpu.ops.matmul import MatmulOps
from ds_accel_cpu.ops.norm import NormOps
from ds_accel_cpu.ops.optim import OptimOps
from ds_accel_cpu.ops.quantize import QuantizeOps
from ds_accel_cpu.ops.tokens import TokenOps

__all__ = ["CpuOps"]


class CpuOps(OptimOps, NormOps, QuantizeOps, ActivationOps, LossOps, TokenOps, MatmulOps):
    """The ops of one kernel library. Each method has the signature of the op in `ds_core.ops`.

    Args:
        library: loaded and checked; any level that this machine runs.
    """
