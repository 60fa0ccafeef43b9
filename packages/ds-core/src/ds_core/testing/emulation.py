"""Emulated device kernels under test: the order in which their threads and blocks run must not change a bit.

A library of kernels for GPUs that was compiled for the CPU (see ds-accel-cuda) runs threads one at a time. Whatever it
computes must be the same whoever goes first; what is not has a race.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ds_core.ops.case import Exactness, OpCase
from ds_core.ops.table import op
from ds_core.testing import op_cases

__all__ = ["ORDERS", "Emulation", "Order", "check_in_every_order"]

_CODES = {"in_order": 0, "reversed": 1, "shuffled": 2}


class Order(NamedTuple):
    """Who goes first among threads that may go on, and among blocks: ``in_order``, ``reversed`` or ``shuffled``."""

    kind: str
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.seed}" if self.kind == "shuffled" else self.kind


ORDERS: tuple[Order, ...] = (Order("in_order"), Order("reversed"), Order("shuffled", 1))
"""What `check_in_every_order` runs."""


class Emulation:
    """What a test may set and ask of an emulated library.

    Args:
        path: of the library; it stays loaded.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        library.dsk_emulation_error.restype = ctypes.c_char_p
        library.dsk_emulation_launches.restype = ctypes.c_uint64
        library.dsk_emulation_set_order.argtypes = [ctypes.c_int32, ctypes.c_uint64]
        library.dsk_emulation_set_order.restype = None
        self._library = library

    @contextmanager
    def order(self, order: Order) -> Iterator[None]:
        """Runs threads and blocks so inside the block, and by number behind it."""
        self._library.dsk_emulation_set_order(_CODES[order.kind], order.seed)
        try:
            yield
        finally:
            self._library.dsk_emulation_set_order(_CODES["in_order"], 0)

    def error(self) -> str:
        """Why the last launch of this thread that failed did; empty if none has."""
        text: bytes = self._library.dsk_emulation_error()
        return text.decode()

    def launches(self) -> int:
        """Launches since the library was loaded."""
        return int(self._library.dsk_emulation_launches())


def check_in_every_order(name: str, case: OpCase, kernel: Callable[..., Any], emulation: Emulation) -> None:
    """Runs a case in every order, compares with the reference once, and the orders with each other bit by bit.

    Args:
        name: of the op.
        case: of the op.
        kernel: with the signature of the op, for tensors in host memory.
        emulation: of the library that `kernel` is of.

    Raises:
        AssertionError: a result is outside of the case's bound, or differs between orders.
    """
    definition = op(name).definition()
    expected_call = op_cases.build(name, case)
    calls = [expected_call.clone() for _ in ORDERS]
    definition.check(**expected_call.tensors, **expected_call.scalars)
    expected = op_cases.as_tuple(definition.reference(**expected_call.tensors, **expected_call.scalars))
    want = (*expected, *_arguments(expected_call))
    first: tuple[torch.Tensor, ...] = ()
    for order, call in zip(ORDERS, calls, strict=True):
        with emulation.order(order):
            found = op_cases.as_tuple(kernel(**call.tensors, **call.scalars))
        got = (*found, *_arguments(call))
        where = f"{name}, case {case.name}, emulated {order}"
        if not first:
            first = got
            for index, (one, other) in enumerate(zip(got, want, strict=True)):
                op_cases.compare(one, other, case.exactness, f"{where}: output or argument {index}")
        for one, other in zip(got, first, strict=True):
            op_cases.compare(one, other, Exactness(ulps=0), f"{where}: differs from {ORDERS[0]}, so it has a race,")


def _arguments(call: op_cases.Call) -> tuple[torch.Tensor, ...]:
    return tuple(tensor for tensor in call.tensors.values() if tensor is not None)
