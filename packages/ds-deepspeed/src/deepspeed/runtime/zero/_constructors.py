"""Constructors of tensors, and what DeepSpeed wraps them in; Hugging Face transformers replaces the wrapper by its own.

Nothing here calls the wrapper: `ds_zero.Init` casts parameters once they have their values, and leaves tensors that are
not parameters as the model makes them, which is what transformers wants of its replacement.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["zero_wrapper_for_fp_tensor_constructor"]

_orig_torch_arange = torch.arange
_orig_torch_empty = torch.empty
_orig_torch_eye = torch.eye
_orig_torch_full = torch.full
_orig_torch_ones = torch.ones
_orig_torch_randn = torch.randn
_orig_torch_tensor = torch.tensor
_orig_torch_zeros = torch.zeros


def zero_wrapper_for_fp_tensor_constructor(
    fn: Callable[..., torch.Tensor], target_fp_dtype: torch.dtype, target_device: torch.device | str | None = None
) -> Callable[..., torch.Tensor]:
    """`fn` whose floating-point results have `target_fp_dtype`, on `target_device` where the call names none."""

    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        if target_device is not None and kwargs.get("device") is None:
            kwargs["device"] = target_device
        tensor = fn(*args, **kwargs)
        return tensor.to(target_fp_dtype) if tensor.is_floating_point() else tensor

    return made
