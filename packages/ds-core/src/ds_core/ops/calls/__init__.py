"""Calling a library of kernels: torch tensors in, packed argument structs and raw addresses out.

A wheel that has a library with the op table of ``ds_kernel.h`` writes one line for all of its ops::

    OPS = KernelOps(ds_core.ops.native.load(path), StreamLauncher(stream=current_raw_stream))

Arguments were checked by the op's definition already.
"""

from __future__ import annotations

from ds_core.ops.calls.activation import ActivationOps
from ds_core.ops.calls.attention import AttentionOps
from ds_core.ops.calls.kernels import CallableKernel, Kernels, Launcher, Run
from ds_core.ops.calls.launchers import HostLauncher, StreamLauncher
from ds_core.ops.calls.loss import LossOps
from ds_core.ops.calls.matmul import MatmulOps
from ds_core.ops.calls.moe import MoeOps
from ds_core.ops.calls.norm import NormOps
from ds_core.ops.calls.optim import OptimOps
from ds_core.ops.calls.quantize import QuantizeOps
from ds_core.ops.calls.ragged import RaggedOps
from ds_core.ops.calls.tokens import TokenOps

__all__ = ["CallableKernel", "HostLauncher", "KernelOps", "Kernels", "Launcher", "Run", "StreamLauncher"]


class KernelOps(
    ActivationOps,
    AttentionOps,
    LossOps,
    MatmulOps,
    MoeOps,
    NormOps,
    OptimOps,
    QuantizeOps,
    RaggedOps,
    TokenOps,
):
    """The ops of one kernel library. Each method has the signature of the op's reference in `ds_core.ops`.

    An op whose kernel the library lacks raises `OpError` when it is called; `ds_ops` of the wheel does not list it.

    Args:
        library: loaded and checked.
        launcher: how its kernels are run.
    """
