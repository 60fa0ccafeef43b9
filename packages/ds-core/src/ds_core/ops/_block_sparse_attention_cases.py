"""Conformance cases of block_sparse_attention, forward and backward."""

from __future__ import annotations

from typing import Any

from ds_core.ops._attention_common import BACKWARD_EXACTNESS, FORWARD_EXACTNESS
from ds_core.ops.case import Fill, Layout, OpCase, TensorSpec

__all__ = ["BACKWARD_CASES", "CASES"]


def _tensors(
    shape: tuple[int, int, int, int],
    dtype: str,
    block_size: int,
    kept: str,
    key_bias: str | None,
    bias: tuple[int, int, str] | None,
    layout: Layout,
) -> dict[str, TensorSpec | None]:
    batch, heads, tokens, _ = shape
    x = TensorSpec(shape, dtype, layout=layout)
    blocks = -(-tokens // block_size)
    wanted = heads if len(kept) > blocks * blocks else 1
    cells = tuple(float(cell) for cell in kept * (1 if len(kept) == wanted * blocks * blocks else blocks * blocks))
    return {
        "q": TensorSpec(shape, dtype, scale=2.0, layout=layout),
        "k": x,
        "v": x,
        "layout": TensorSpec((wanted, blocks, blocks), "bool", values=cells),
        "key_bias": None if key_bias is None else TensorSpec((batch, tokens), key_bias),
        "bias": None if bias is None else TensorSpec((bias[0], bias[1], tokens, tokens), bias[2]),
    }


def _case(
    name: str,
    shape: tuple[int, int, int, int],
    dtype: str = "float32",
    *,
    kept: str = "1",
    block_size: int = 16,
    key_bias: str | None = None,
    bias: tuple[int, int, str] | None = None,
    layout: Layout = Layout.CONTIGUOUS,
    causal: bool = False,
) -> tuple[OpCase, OpCase]:
    """(forward, backward). `kept` is the layout cell by cell, for all heads or each, or "1" for every block."""
    tensors = _tensors(shape, dtype, block_size, kept, key_bias, bias, layout)
    scalars = {"block_size": block_size, "scale": shape[-1] ** -0.5, "causal": causal}
    backward: dict[str, TensorSpec | None] = {
        "dy": TensorSpec(shape, dtype, layout=layout),
        **tensors,
        "y": TensorSpec(shape, dtype, layout=layout),
        "lse": TensorSpec(shape[:3], "float32", Fill.SQUARES, 1.5),
    }
    needs: dict[str, Any] = {"need_key_bias": key_bias is not None, "need_bias": bias is not None}
    return (
        OpCase(name, tensors, scalars, exactness=FORWARD_EXACTNESS),
        OpCase(name, backward, {**scalars, **needs}, exactness=BACKWARD_EXACTNESS),
    )


_HOLES = "110011001"  # three blocks of queries and keys
_EMPTY_ROW = "101000011"
_BY_HEAD = "110011001" + "001010100"

_PAIRS = (
    *(_case(dtype, (1, 2, 40, 16), dtype, kept=_HOLES) for dtype in ("float32", "bfloat16", "float16")),
    _case("dense", (2, 1, 21, 8)),
    _case("layout_of_each_head", (1, 2, 48, 16), kept=_BY_HEAD),
    _case("a_row_without_blocks", (1, 1, 45, 16), kept=_EMPTY_ROW),
    _case("no_blocks_at_all", (1, 1, 20, 8), kept="0000"),
    _case("causal", (1, 2, 40, 16), kept=_BY_HEAD, causal=True),
    _case("key_bias", (2, 1, 37, 16), kept=_HOLES, key_bias="float32"),
    _case("bias", (2, 2, 19, 8), kept="1101", bias=(2, 2, "float32")),
    _case("bias_of_all", (2, 2, 19, 8), "bfloat16", kept="1101", bias=(1, 1, "bfloat16")),
    _case("bias_of_heads", (2, 2, 19, 8), kept="1110", bias=(1, 2, "float16"), key_bias="float16", causal=True),
    _case("bias_of_batches", (2, 2, 17, 8), "float16", kept="1011", bias=(2, 1, "float32")),
    _case("blocks_of_32", (1, 2, 67, 16), "bfloat16", kept=_BY_HEAD, block_size=32, causal=True),
    _case("blocks_of_64", (1, 1, 100, 8), kept="1101", block_size=64),
    _case("blocks_of_128", (1, 1, 130, 8), kept="1001", block_size=128, causal=True),
    _case("one_token", (1, 1, 1, 8)),
    _case("no_tokens", (1, 1, 0, 8)),
    _case("no_batch", (0, 2, 20, 8)),
    _case("odd_head", (1, 1, 20, 7), "bfloat16"),
    _case("head_of_64", (1, 1, 33, 64), "float16", kept=_HOLES),
    _case("head_of_100", (1, 1, 33, 100), kept=_HOLES, block_size=16),
    _case("head_of_128", (1, 1, 40, 128), "bfloat16", kept="1101", block_size=32),
    _case("head_of_256", (1, 1, 33, 256), kept="1101", block_size=32, causal=True),
    _case("transposed", (1, 2, 20, 8), layout=Layout.TRANSPOSED),
    _case("strided", (1, 2, 20, 8), "bfloat16", layout=Layout.STRIDED),
    _case("unaligned", (1, 2, 20, 8), "float16", layout=Layout.OFFSET),
)
CASES = tuple(forward for forward, _ in _PAIRS)
BACKWARD_CASES = tuple(backward for _, backward in _PAIRS)
