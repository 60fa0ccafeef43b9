"""What ds-accel-cpu brings to ds-core: the device ``cpu``, kernels for its ops, and optimizers built on them."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from ds_core.hooks import (
    AcceleratorEntry,
    Availability,
    CommBackendEntry,
    OpImpl,
    OptimizerEntry,
    Proof,
    ReportRow,
    hookimpl,
)

DS_HOOK_API = (1, 2)

_OPS = (
    "adam_",
    "adam8bit_",
    "adagrad_",
    "lamb_moments_",
    "lamb_apply_",
    "lion_",
    "sgd_",
    "sum_of_squares",
    "rms_norm_forward",
    "rms_norm_backward",
    "layer_norm_forward",
    "layer_norm_backward",
    "quantize",
    "dequantize",
    "add_rms_norm_forward",
    "add_rms_norm_backward",
    "add_layer_norm_forward",
    "add_layer_norm_backward",
    "rotary",
    "rotary_",
    "gated_activation",
    "gated_activation_backward",
    "gated_activation_packed",
    "gated_activation_packed_backward",
    "softmax_forward",
    "softmax_backward",
    "cross_entropy_forward",
    "cross_entropy_backward",
    "cross_entropy_",
    "gather_rows",
    "replace_rows",
    "scatter_rows",
    "scatter_rows_backward",
    "combine_rows",
    "combine_rows_backward",
    "linear_weight_only",
    "linear_w8a8",
)
_SUPPORTS = {"linear_weight_only": "ds_accel_cpu.supports:linear_weight_only"}


def _is_available() -> Availability:
    from ds_accel_cpu import _binding

    levels = _binding.levels()
    if any(level.usable for level in levels):
        return Availability(usable=True, device_count=1)
    return Availability(usable=False, reason=f"no kernel library runs here: the processor {levels[-1].reason}")


@hookimpl
def ds_accelerators() -> Iterable[AcceleratorEntry]:
    """The CPU, as a floor: it never competes with a real device."""
    return [
        AcceleratorEntry(
            "cpu",
            is_available=_is_available,
            factory="ds_accel_cpu.accelerator:CpuAccelerator",
            priority=10,
            is_floor=True,
        )
    ]


@hookimpl
def ds_ops() -> Iterable[OpImpl]:
    return [
        OpImpl(op, "cpu", load=f"ds_accel_cpu.serving:OPS.{op}", supports=_SUPPORTS.get(op), proof=Proof.EXECUTED)
        for op in _OPS
    ]


@hookimpl
def ds_comm_backends() -> Iterable[CommBackendEntry]:
    """Shared memory between the ranks of one host, on Linux."""
    if sys.platform != "linux":
        return []
    return [
        CommBackendEntry(
            "shm",
            device_types=("cpu",),
            factory="ds_accel_cpu.comm.group:ShmGroup",
            supports="ds_accel_cpu.comm.connect:supports",
        )
    ]


@hookimpl
def ds_optimizers() -> Iterable[OptimizerEntry]:
    """Every optimizer that is made of an op."""
    return [
        OptimizerEntry(name, f"ds_accel_cpu.optim:make_{name.lower()}", ("cpu",), 10, elementwise=name != "Lamb")
        for name in ("Adam", "AdamW", "Adagrad", "Lamb", "Lion", "SGD")
    ]


@hookimpl
def ds_report() -> Iterable[ReportRow]:
    """The level in use, what the processor can do, and threads."""
    from ds_accel_cpu.report import rows

    return rows()
