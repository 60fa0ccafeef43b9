"""Ranges that a device's profiler shows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["instrument_w_nvtx"]

P = ParamSpec("P")
R = TypeVar("R")


def instrument_w_nvtx(func: Callable[P, R]) -> Callable[P, R]:
    """`func` that shows under its name in torch's profiler, and through it in those of devices."""

    @functools.wraps(func)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.profiler.record_function(func.__qualname__):
            return func(*args, **kwargs)

    return named
