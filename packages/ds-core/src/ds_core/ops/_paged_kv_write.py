"""paged_kv_write_: keys and values of ragged tokens put into their places in a blocked cache."""

from __future__ import annotations

import torch

from ds_core.errors import OpError
from ds_core.ops._paged_attention import check_cache
from ds_core.ops.case import Layout, OpCase, TensorSpec
from ds_core.ops.checks import expect_device, expect_integers, expect_like, expect_rows_exist, expect_shape, name_of
from ds_core.ops.definition import OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "paged_kv_write_"]


def paged_kv_write_(
    key_cache: torch.Tensor, value_cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor
) -> None:
    """Writes `key` and `value` of each token into the caches at its slot. Without a derivative.

    Args:
        key_cache, value_cache: [blocks, block_size, kv_heads, head_dim], float32, bfloat16 or float16, changed in
            place. See `paged_attention`.
        key, value: [tokens, kv_heads, head_dim] like the caches, any strides; rotary embedding is done already.
        slots: [tokens] int32 or int64: ``block * block_size + place in the block``. A token with -1 is left out.
            Two tokens must not share a slot: which of them stays is not defined.

    Raises:
        OpError: a shape, dtype or device does not fit; or a slot is not in the cache, and then what the caches hold at
            the slots of this call is not defined.

    Source: W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", SOSP
        2023, section 4.3.
    """
    with torch.no_grad():
        if is_plain(key_cache):
            run(DEFINITIONS[0], key_cache, value_cache, key, value, slots)
        else:
            torch.ops.ds.paged_kv_write_(key_cache, value_cache, key, value, slots)


def _check(
    key_cache: torch.Tensor, value_cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor
) -> None:
    op = "paged_kv_write_"
    check_cache(op, key_cache, value_cache)
    if key.dim() != 3 or key.shape[1:] != key_cache.shape[2:]:
        raise OpError(
            f"{op}: key must be [tokens, {key_cache.shape[2]}, {key_cache.shape[3]}] like the caches, got shape "
            f"{tuple(key.shape)}."
        )
    expect_device(op, "key", key, "key_cache", key_cache.device)
    if key.dtype != key_cache.dtype:
        raise OpError(f"{op}: key must be {name_of(key_cache.dtype)} like key_cache, got {name_of(key.dtype)}.")
    expect_like(op, "value", value, "key", key)
    expect_integers(op, "slots", slots, "key", key.device)
    expect_shape(op, "slots", slots, key.shape[:1], "one for each token of key")


def _reference(
    key_cache: torch.Tensor, value_cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor
) -> None:
    block_size = key_cache.shape[1]
    expect_rows_exist("paged_kv_write_", "slots", slots, key_cache.shape[0] * block_size, -1, " to leave a token out")
    kept = slots >= 0
    taken = slots[kept].to(torch.int64)
    place = taken // block_size, taken % block_size
    key_cache[place] = key[kept]
    value_cache[place] = value[kept]


def _fake(*arguments: object, **named: object) -> None:
    return None


def _case(
    name: str,
    slots: tuple[int, ...],
    cache: tuple[int, int, int, int] = (4, 5, 2, 8),
    dtype: str = "float32",
    *,
    index: str = "int64",
    layout: Layout = Layout.CONTIGUOUS,
    cache_layout: Layout = Layout.CONTIGUOUS,
) -> OpCase:
    blocks = TensorSpec(cache, dtype, layout=cache_layout)
    rows = TensorSpec((len(slots), *cache[2:]), dtype, layout=layout)
    return OpCase(
        name,
        {
            "key_cache": blocks,
            "value_cache": blocks,
            "key": rows,
            "value": rows,
            "slots": TensorSpec((len(slots),), index, values=slots),
        },
    )


_SLOTS = (19, 3, -1, 0, 7, -1, 11)
_CASES = (
    *(_case(dtype, _SLOTS, dtype=dtype) for dtype in ("float32", "bfloat16", "float16")),
    _case("int32_slots", _SLOTS, index="int32"),
    _case("one_token", (6,)),
    _case("no_tokens", ()),
    _case("none_kept", (-1, -1)),
    _case("no_blocks", (-1,), (0, 5, 2, 8)),
    _case("odd_heads", _SLOTS, (3, 7, 3, 5), "bfloat16"),
    _case("head_of_one", _SLOTS, (4, 5, 1, 1), "float16"),
    _case("long_rows", tuple(range(30, -1, -3)), (2, 16, 4, 128), "bfloat16"),
    _case("transposed", _SLOTS, layout=Layout.TRANSPOSED, cache_layout=Layout.TRANSPOSED),
    _case("strided", _SLOTS, layout=Layout.STRIDED, cache_layout=Layout.STRIDED),
    _case("unaligned", _SLOTS, dtype="bfloat16", layout=Layout.OFFSET, cache_layout=Layout.OFFSET),
)

DEFINITIONS = (
    OpDefinition(
        schema=(
            "paged_kv_write_(Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor key, Tensor value, Tensor slots) "
            "-> ()"
        ),
        check=_check,
        reference=_reference,
        fake=_fake,
        autograd=None,
        cases=_CASES,
    ),
)
