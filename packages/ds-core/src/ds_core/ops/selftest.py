"""The first call of a kernel that nobody has run on hardware yet is a comparison with the reference."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ds_core.hooks import Proof
from ds_core.ops.case import OpCase
from ds_core.plugins.switches import flag

__all__ = ["SWITCH", "distrust", "needs_selftest"]

SWITCH = "DS_KERNEL_SELFTEST"
"""Environment variable; 0 takes every kernel at its word."""

_CASES = 3


def needs_selftest(proof: Proof, device_type: str) -> bool:
    """Whether a kernel with this proof is compared with the reference before it is used on a device of this type.

    What was executed was so on a CPU, so elsewhere it is as new as what never ran.
    """
    is_new = proof in (Proof.EMULATED, Proof.COMPILED) or (proof is Proof.EXECUTED and device_type != "cpu")
    return is_new and flag(os.environ, SWITCH, default=True)


def distrust(name: str, kernel: Callable[..., Any], device_type: str) -> str | None:
    """Why a kernel must not be used on this device: how it differs from the reference in small conformance cases.

    None when it agrees. Takes some milliseconds, and synchronizes.
    """
    from ds_core.ops import conformance

    for case in _small(conformance.cases(name)):
        try:
            conformance.check_kernel(name, case, kernel, device_type)
        except AssertionError as error:
            return f"it differs from the reference here: {error}"
        except Exception as error:  # noqa: BLE001 - whatever a kernel does wrong, the reference can do the work
            return f"it fails here: {type(error).__name__}: {error}"
    return None


def _small(cases: tuple[OpCase, ...]) -> list[OpCase]:
    """A few cases of different sizes, none large, and not the empty ones."""
    sized = [(sum(_numel(shape.shape) for shape in case.tensors.values() if shape is not None), case) for case in cases]
    usable = sorted((pair for pair in sized if 0 < pair[0] <= 1 << 16), key=lambda pair: -pair[0])
    return [case for _, case in usable[:: max(1, len(usable) // _CASES)][:_CASES]]


def _numel(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
