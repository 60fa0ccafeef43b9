"""The op table: each op once, with a plain PyTorch reference, and native implementations from whatever wheel is there.

``ds_core.ops.adam_(...)`` and its kin look up the implementation for the device once and then call it; the same ops
are ``torch.ops.ds.*`` for tracing, compiling and autograd. Listing the table imports no torch; taking an op does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ds_core.ops.registry import implementations
from ds_core.ops.table import OPS

if TYPE_CHECKING:
    from ds_core.ops._adagrad import adagrad_
    from ds_core.ops._adam import adam_
    from ds_core.ops._layer_norm import layer_norm, layer_norm_backward, layer_norm_forward
    from ds_core.ops._lion import lion_
    from ds_core.ops._quantize import (
        Quantized,
        dequantize,
        dequantize_int4,
        dequantize_int8,
        quantize,
        quantize_int4,
        quantize_int8,
    )
    from ds_core.ops._rms_norm import rms_norm, rms_norm_backward, rms_norm_forward
    from ds_core.ops._sgd import sgd_
    from ds_core.ops._sum_of_squares import sum_of_squares

__all__ = [
    "OPS",
    "Quantized",
    "adagrad_",
    "adam_",
    "dequantize",
    "dequantize_int4",
    "dequantize_int8",
    "implementations",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "lion_",
    "quantize",
    "quantize_int4",
    "quantize_int8",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
    "sgd_",
    "sum_of_squares",
]

_HOME = {
    "Quantized": "_quantize",
    "adagrad_": "_adagrad",
    "adam_": "_adam",
    "dequantize": "_quantize",
    "dequantize_int4": "_quantize",
    "dequantize_int8": "_quantize",
    "layer_norm": "_layer_norm",
    "layer_norm_backward": "_layer_norm",
    "layer_norm_forward": "_layer_norm",
    "quantize": "_quantize",
    "quantize_int4": "_quantize",
    "quantize_int8": "_quantize",
    "lion_": "_lion",
    "rms_norm": "_rms_norm",
    "rms_norm_backward": "_rms_norm",
    "rms_norm_forward": "_rms_norm",
    "sgd_": "_sgd",
    "sum_of_squares": "_sum_of_squares",
}


def __getattr__(name: str) -> Any:
    """Defines the ops, and so imports torch, at the first use of one of them."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module("ds_core.ops.library")
    value = getattr(importlib.import_module(f"ds_core.ops.{_HOME[name]}"), name)
    globals()[name] = value
    return value
