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
    from ds_core.ops._adam8bit import adam8bit_
    from ds_core.ops._add_norm import add_layer_norm, add_rms_norm
    from ds_core.ops._block_sparse_attention import block_sparse_attention
    from ds_core.ops._combine_rows import combine_rows
    from ds_core.ops._cross_entropy import cross_entropy, cross_entropy_
    from ds_core.ops._evoformer_attention import evoformer_attention
    from ds_core.ops._expert_permutation import ExpertPermutation, expert_permutation
    from ds_core.ops._gated_activation import gated_activation, gated_activation_packed
    from ds_core.ops._gather_rows import gather_rows, replace_rows
    from ds_core.ops._grouped_matmul import grouped_matmul
    from ds_core.ops._lamb import lamb_apply_, lamb_moments_
    from ds_core.ops._layer_norm import layer_norm, layer_norm_backward, layer_norm_forward
    from ds_core.ops._linear_cross_entropy import linear_cross_entropy
    from ds_core.ops._linear_quantized import linear_w8a8, linear_weight_only
    from ds_core.ops._lion import lion_
    from ds_core.ops._packed_weight import PackedWeight, pack_codes_by_outputs, pack_weight
    from ds_core.ops._paged_attention import paged_attention
    from ds_core.ops._paged_kv_write import paged_kv_write_
    from ds_core.ops._quantize import (
        Quantized,
        dequantize,
        dequantize_int4,
        dequantize_int8,
        quantize,
        quantize_int4,
        quantize_int8,
    )
    from ds_core.ops._quantized_reduce import quantized_reduce, quantized_reduce_quantize
    from ds_core.ops._ragged_embed import ragged_embed
    from ds_core.ops._rms_norm import rms_norm, rms_norm_backward, rms_norm_forward
    from ds_core.ops._rotary import rotary, rotary_, rotary_tables
    from ds_core.ops._scatter_rows import scatter_rows
    from ds_core.ops._sgd import sgd_
    from ds_core.ops._softmax import softmax, softmax_backward
    from ds_core.ops._sum_of_squares import sum_of_squares
    from ds_core.ops._swizzle_quantize import swizzle_quantize
    from ds_core.ops._top_k_gate import Gate, top_k_gate

__all__ = [
    "OPS",
    "ExpertPermutation",
    "Gate",
    "PackedWeight",
    "Quantized",
    "adagrad_",
    "adam8bit_",
    "adam_",
    "add_layer_norm",
    "add_rms_norm",
    "block_sparse_attention",
    "combine_rows",
    "cross_entropy",
    "cross_entropy_",
    "dequantize",
    "dequantize_int4",
    "dequantize_int8",
    "evoformer_attention",
    "expert_permutation",
    "gated_activation",
    "gated_activation_packed",
    "gather_rows",
    "grouped_matmul",
    "implementations",
    "lamb_apply_",
    "lamb_moments_",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear_cross_entropy",
    "linear_w8a8",
    "linear_weight_only",
    "lion_",
    "pack_codes_by_outputs",
    "pack_weight",
    "paged_attention",
    "paged_kv_write_",
    "quantize",
    "quantize_int4",
    "quantize_int8",
    "quantized_reduce",
    "quantized_reduce_quantize",
    "ragged_embed",
    "replace_rows",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
    "rotary",
    "rotary_",
    "rotary_tables",
    "scatter_rows",
    "sgd_",
    "softmax",
    "softmax_backward",
    "sum_of_squares",
    "swizzle_quantize",
    "top_k_gate",
]

_HOME = {
    "ExpertPermutation": "_expert_permutation",
    "Gate": "_top_k_gate",
    "PackedWeight": "_packed_weight",
    "Quantized": "_quantize",
    "adagrad_": "_adagrad",
    "add_layer_norm": "_add_norm",
    "add_rms_norm": "_add_norm",
    "block_sparse_attention": "_block_sparse_attention",
    "combine_rows": "_combine_rows",
    "cross_entropy": "_cross_entropy",
    "cross_entropy_": "_cross_entropy",
    "evoformer_attention": "_evoformer_attention",
    "expert_permutation": "_expert_permutation",
    "gated_activation": "_gated_activation",
    "gated_activation_packed": "_gated_activation",
    "gather_rows": "_gather_rows",
    "replace_rows": "_gather_rows",
    "grouped_matmul": "_grouped_matmul",
    "linear_cross_entropy": "_linear_cross_entropy",
    "rotary": "_rotary",
    "rotary_": "_rotary",
    "rotary_tables": "_rotary",
    "scatter_rows": "_scatter_rows",
    "softmax": "_softmax",
    "softmax_backward": "_softmax",
    "adam8bit_": "_adam8bit",
    "adam_": "_adam",
    "dequantize": "_quantize",
    "dequantize_int4": "_quantize",
    "dequantize_int8": "_quantize",
    "lamb_apply_": "_lamb",
    "lamb_moments_": "_lamb",
    "layer_norm": "_layer_norm",
    "layer_norm_backward": "_layer_norm",
    "layer_norm_forward": "_layer_norm",
    "linear_w8a8": "_linear_quantized",
    "linear_weight_only": "_linear_quantized",
    "pack_codes_by_outputs": "_packed_weight",
    "pack_weight": "_packed_weight",
    "paged_attention": "_paged_attention",
    "paged_kv_write_": "_paged_kv_write",
    "quantize": "_quantize",
    "quantize_int4": "_quantize",
    "quantize_int8": "_quantize",
    "quantized_reduce": "_quantized_reduce",
    "quantized_reduce_quantize": "_quantized_reduce",
    "lion_": "_lion",
    "ragged_embed": "_ragged_embed",
    "rms_norm": "_rms_norm",
    "rms_norm_backward": "_rms_norm",
    "rms_norm_forward": "_rms_norm",
    "sgd_": "_sgd",
    "sum_of_squares": "_sum_of_squares",
    "swizzle_quantize": "_swizzle_quantize",
    "top_k_gate": "_top_k_gate",
}


def __getattr__(name: str) -> Any:
    """Defines the ops, and so imports torch, at the first use of one of them."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module("ds_core.ops.library")
    value = getattr(importlib.import_module(f"ds_core.ops.{_HOME[name]}"), name)
    globals()[name] = value
    return value
