"""The list of ops. Importing it imports no torch; the definition of an op is loaded when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ds_core.errors import OpError, did_you_mean

if TYPE_CHECKING:
    from ds_core.ops.definition import OpDefinition

__all__ = ["OPS", "Op", "op"]


@dataclass(frozen=True, slots=True)
class Op:
    """One row of the table.

    Args:
        name: without the namespace ``ds``.
        module: where it is defined; holds ``DEFINITIONS``, a tuple with the definition of this op among others.
        summary: one line for listings.
        by_torch: the reference is made of torch's own products of matrices, which are native on every device: no wheel
            is expected to bring a kernel.
    """

    name: str
    module: str
    summary: str
    by_torch: bool = False

    def definition(self) -> OpDefinition:
        """Schema, reference, shape function, checks and conformance cases. Imports torch."""
        definitions: tuple[OpDefinition, ...] = importlib.import_module(self.module).DEFINITIONS
        return next(found for found in definitions if found.name == self.name)


OPS: Mapping[str, Op] = {
    row.name: row
    for row in (
        Op("adam_", "ds_core.ops._adam", "one Adam or AdamW step in one pass, with unscale and low-precision copy-out"),
        Op("adam8bit_", "ds_core.ops._adam8bit", "one Adam step with moments of a byte an element"),
        Op("adagrad_", "ds_core.ops._adagrad", "one Adagrad step in one pass"),
        Op("lamb_moments_", "ds_core.ops._lamb", "moments of a LAMB step, and the norms of segments"),
        Op("lamb_apply_", "ds_core.ops._lamb", "update of a LAMB step with a trust ratio a segment"),
        Op("lion_", "ds_core.ops._lion", "one Lion step in one pass"),
        Op("sgd_", "ds_core.ops._sgd", "one step of gradient descent with momentum in one pass"),
        Op("sum_of_squares", "ds_core.ops._sum_of_squares", "sum of squares, the same for any number of threads"),
        Op("rms_norm_forward", "ds_core.ops._rms_norm", "root-mean-square normalization of rows"),
        Op("rms_norm_backward", "ds_core.ops._rms_norm", "gradients of rms_norm_forward"),
        Op("layer_norm_forward", "ds_core.ops._layer_norm", "layer normalization of rows"),
        Op("layer_norm_backward", "ds_core.ops._layer_norm", "gradients of layer_norm_forward"),
        Op("quantize", "ds_core.ops._quantize", "groups as int8, int4, fp8, fp6 or fp4 codes with a scale each"),
        Op("dequantize", "ds_core.ops._quantize", "inverse of quantize"),
        Op(
            "quantized_reduce",
            "ds_core.ops._quantized_reduce",
            "sum over ranks of quantized chunks",
        ),
        Op("quantized_reduce_quantize", "ds_core.ops._quantized_reduce", "that sum, quantized again in the same pass"),
        Op("swizzle_quantize", "ds_core.ops._swizzle_quantize", "quantize by chunks, in the order of a hierarchy"),
        Op(
            "add_rms_norm_forward",
            "ds_core.ops._add_norm",
            "rms_norm of a sum with a residual",
        ),
        Op("add_rms_norm_backward", "ds_core.ops._add_norm", "gradients of add_rms_norm_forward"),
        Op("add_layer_norm_forward", "ds_core.ops._add_norm", "layer_norm of a sum with a residual"),
        Op("add_layer_norm_backward", "ds_core.ops._add_norm", "gradients of add_layer_norm_forward"),
        Op("rotary", "ds_core.ops._rotary", "rotary position embedding of heads"),
        Op("rotary_", "ds_core.ops._rotary", "rotary, written over its argument"),
        Op("gated_activation", "ds_core.ops._gated_activation", "silu, gelu or relu of a gate times another tensor"),
        Op("gated_activation_backward", "ds_core.ops._gated_activation", "gradients of gated_activation"),
        Op("gated_activation_packed", "ds_core.ops._gated_activation", "gated_activation of the halves of one tensor"),
        Op("gated_activation_packed_backward", "ds_core.ops._gated_activation", "gradient of gated_activation_packed"),
        Op("softmax_forward", "ds_core.ops._softmax", "softmax of scaled and masked rows"),
        Op("softmax_backward", "ds_core.ops._softmax", "gradient of softmax_forward"),
        Op("cross_entropy_forward", "ds_core.ops._cross_entropy", "cross-entropy of logits in one pass"),
        Op("cross_entropy_backward", "ds_core.ops._cross_entropy", "gradient of cross_entropy_forward"),
        Op("cross_entropy_", "ds_core.ops._cross_entropy", "cross-entropy, its gradient written over the logits"),
        Op("gather_rows", "ds_core.ops._gather_rows", "rows taken by index"),
        Op("replace_rows", "ds_core.ops._gather_rows", "rows put in the place of others by index"),
        Op("scatter_rows", "ds_core.ops._scatter_rows", "rows added where an index says, in order"),
        Op("scatter_rows_backward", "ds_core.ops._scatter_rows", "gradients of scatter_rows with weights"),
        Op("combine_rows", "ds_core.ops._combine_rows", "weighted sums of a few rows for each token"),
        Op("combine_rows_backward", "ds_core.ops._combine_rows", "gradients of combine_rows"),
        Op("top_k_gate", "ds_core.ops._top_k_gate", "experts of each token and their weights"),
        Op("top_k_gate_backward", "ds_core.ops._top_k_gate", "gradient of top_k_gate"),
        Op("expert_permutation", "ds_core.ops._expert_permutation", "places of tokens sorted by expert"),
        Op("grouped_matmul", "ds_core.ops._grouped_matmul", "runs of rows, each times the matrix of its group", True),
        Op("grouped_matmul_weight", "ds_core.ops._grouped_matmul", "gradient of grouped_matmul for the matrices", True),
        Op("ragged_embed", "ds_core.ops._ragged_embed", "sum of token, position and token-type embeddings"),
        Op(
            "linear_weight_only",
            "ds_core.ops._linear_quantized",
            "linear layer with an int8, int4, fp8, fp6 or fp4 weight",
        ),
        Op("linear_w8a8", "ds_core.ops._linear_quantized", "the same on activations quantized to int8 row by row"),
        Op("paged_attention", "ds_core.ops._paged_attention", "ragged tokens to keys and values in blocks of a cache"),
        Op("paged_kv_write_", "ds_core.ops._paged_kv_write", "keys and values put into their places in that cache"),
        Op(
            "block_sparse_attention_forward",
            "ds_core.ops._block_sparse_attention",
            "attention to the blocks of keys that a layout names",
        ),
        Op(
            "block_sparse_attention_backward",
            "ds_core.ops._block_sparse_attention",
            "gradients of block_sparse_attention_forward",
        ),
        Op("evoformer_attention_forward", "ds_core.ops._evoformer_attention", "attention with a mask and a pair bias"),
        Op("evoformer_attention_backward", "ds_core.ops._evoformer_attention", "its gradients, those of biases too"),
    )
}
"""Every op by name."""


def op(name: str) -> Op:
    """The row called `name`.

    Raises:
        OpError: there is no such op.
    """
    if name not in OPS:
        raise OpError(f"there is no op {name!r}.{did_you_mean(name, OPS)} Known: {', '.join(OPS)}.")
    return OPS[name]
