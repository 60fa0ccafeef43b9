"""Checks that ops share; each raises `OpError` with what, the value, what is allowed and what to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ds_core.errors import OpError

__all__ = [
    "FLOATS",
    "expect_device",
    "expect_dtype",
    "expect_flat",
    "expect_index",
    "expect_integers",
    "expect_like",
    "expect_rows_exist",
    "expect_shape",
    "name_of",
]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes the numeric ops take."""


def name_of(dtype: torch.dtype) -> str:
    """``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def expect_dtype(op: str, argument: str, tensor: torch.Tensor, allowed: Sequence[torch.dtype] = FLOATS) -> None:
    """The tensor has one of the dtypes."""
    if tensor.dtype not in allowed:
        names = ", ".join(name_of(dtype) for dtype in allowed)
        raise OpError(
            f"{op}: {argument} must be {names}, got {name_of(tensor.dtype)}. Convert it with .to() before the call."
        )


def expect_shape(op: str, argument: str, tensor: torch.Tensor, shape: Sequence[int], why: str) -> None:
    """The tensor has that shape."""
    if tuple(tensor.shape) != tuple(shape):
        raise OpError(f"{op}: {argument} must have shape {tuple(shape)} ({why}), got {tuple(tensor.shape)}.")


def expect_device(op: str, argument: str, tensor: torch.Tensor, other: str, device: torch.device) -> None:
    """The tensor lives on that device."""
    if tensor.device != device:
        raise OpError(f"{op}: {argument} must be on {device} like {other}, got {tensor.device}. Move it with .to().")


def expect_flat(op: str, argument: str, tensor: torch.Tensor) -> None:
    """The tensor is 1-D and dense."""
    if tensor.dim() != 1:
        raise OpError(
            f"{op}: {argument} must be 1-D, got shape {tuple(tensor.shape)}. Pass tensor.view(-1) of a dense tensor."
        )
    if not tensor.is_contiguous():
        raise OpError(
            f"{op}: {argument} must be contiguous, got strides {tensor.stride()} for shape {tuple(tensor.shape)}. "
            "Pass tensor.contiguous()."
        )


def expect_like(op: str, argument: str, tensor: torch.Tensor, other: str, like: torch.Tensor) -> None:
    """The tensor has the shape, dtype and device of `like`, which is called `other`."""
    expect_shape(op, argument, tensor, like.shape, f"the shape of {other}")
    if tensor.dtype != like.dtype:
        raise OpError(f"{op}: {argument} must be {name_of(like.dtype)} like {other}, got {name_of(tensor.dtype)}.")
    expect_device(op, argument, tensor, other, like.device)


def expect_index(op: str, argument: str, tensor: torch.Tensor, other: str, device: torch.device) -> None:
    """The tensor holds int64 and lives on that device. What it holds is for `expect_rows_exist`."""
    expect_dtype(op, argument, tensor, (torch.int64,))
    expect_device(op, argument, tensor, other, device)


def expect_integers(op: str, argument: str, tensor: torch.Tensor, other: str, device: torch.device) -> None:
    """The tensor holds int32 or int64 and lives on that device."""
    expect_dtype(op, argument, tensor, (torch.int32, torch.int64))
    expect_device(op, argument, tensor, other, device)


def expect_rows_exist(
    op: str, argument: str, index: torch.Tensor, rows: int, other: int | None = None, why: str = ""
) -> None:
    """Every value of an index is in [0, rows), or `other`.

    References call it before they read a row; kernels check by themselves, and what calls them comes here for the
    message when they refuse.
    """
    bad = (index < 0) | (index >= rows)
    if other is not None:
        bad &= index != other
    if bool(bad.any()):
        place = tuple(bad.nonzero()[0].tolist())
        value = int(index[place].item()) if place else int(index.item())
        allowed = f"0 to {rows - 1}" if rows > 0 else "no value at all, for there are no rows"
        extra = "" if other is None else f", or {other}{why}"
        at = f"[{', '.join(map(str, place))}]" if place else ""
        raise OpError(f"{op}: {argument}{at} is {value}; allowed: {allowed}{extra}. {int(bad.sum())} values are off.")
