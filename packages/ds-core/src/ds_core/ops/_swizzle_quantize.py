"""swizzle_quantize: a tensor quantized by chunks, one for each rank, in the order in which a hierarchy sends them.

Note [Chunks of a hierarchical all-to-all]
    A tensor has a chunk for each rank of the job, and rank ``n * ranks_per_node + j`` is rank j of node n. A gradient
    reaches its rank in two hops. In the first, inside the node, rank i gives rank j the chunks of all ranks j, whatever
    their node, and rank j adds up what its node-mates gave it. In the second, rank j of each node gives rank j of node
    n the sum for node n. So what the first hop sends to one peer must lie together: chunk (n, j) goes to place
    ``j * nodes + n``, and what arrives and is summed is in the order of nodes, as the second hop sends it. Quantizing
    in that order saves the pass that would move the bytes.
"""

from __future__ import annotations

import torch

from ds_core.errors import OpError
from ds_core.ops._formats import format_of, packed_shape
from ds_core.ops._quantize import DEFINITIONS as QUANTIZE_DEFINITIONS
from ds_core.ops._quantize import Quantized, check_group_size, check_scaling, groups_of
from ds_core.ops._quantized_reduce_cases import SWIZZLE_CASES
from ds_core.ops.checks import expect_dtype
from ds_core.ops.definition import OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "swizzle_quantize"]


def swizzle_quantize(
    x: torch.Tensor,
    format: str,
    group_size: int,
    nodes: int,
    ranks_per_node: int,
    *,
    scaling: str = "symmetric",
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> Quantized:
    """`x` cut into a chunk for each rank, each quantized on its own, chunk (n, j) at place ``j * nodes + n``.

    See Note [Chunks of a hierarchical all-to-all]. With 1 node or 1 rank a node the order is that of ranks.

    Args:
        x: float32, bfloat16 or float16, any shape and strides, its elements a multiple of the number of ranks; chunks
            follow each other in memory order of a dense `x`.
        format, group_size, scaling, rounding_seed, rounding_offset: as for `quantize`; no group crosses the end of a
            chunk, and an element draws what it would draw there.
        nodes, ranks_per_node: of the hierarchy.

    Returns:
        `Quantized`: q [ranks, packed chunk], scales [ranks, groups of a chunk], zeros like scales or None: each row is
        what `quantize` makes of a flat chunk, and `quantized_reduce` takes such rows.

    Raises:
        OpError: an argument does not fit.

    Source: G. Wang et al., "ZeRO++: extremely efficient collective communication for giant model training", 2023: the
    hierarchical all-to-all of qgZ, and its reordering of tensor slices.
    """
    call = torch.ops.ds.swizzle_quantize if not is_plain(x) else _swizzle_quantize
    q, scales, zeros = call(x, format, group_size, nodes, ranks_per_node, scaling, rounding_seed, rounding_offset)
    return Quantized(q, scales, zeros if scaling == "asymmetric" else None)


def _swizzle_quantize(*args: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, scales, zeros = run(DEFINITIONS[0], *args)
    return q, scales, zeros


def _check(
    x: torch.Tensor,
    format: str,
    group_size: int,
    nodes: int,
    ranks_per_node: int,
    scaling: str = "symmetric",
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> None:
    op = "swizzle_quantize"
    expect_dtype(op, "x", x)
    found = format_of(op, format)
    check_group_size(op, found, group_size)
    check_scaling(op, found, scaling, rounding_offset)
    if nodes < 1 or ranks_per_node < 1:
        raise OpError(f"{op}: nodes and ranks_per_node must be 1 or more, got {nodes} and {ranks_per_node}.")
    if x.numel() % (nodes * ranks_per_node) != 0:
        raise OpError(
            f"{op}: x must have a multiple of nodes * ranks_per_node = {nodes * ranks_per_node} elements, got "
            f"{x.numel()}. Fill it up with zeros."
        )


def _reference(
    x: torch.Tensor,
    format: str,
    group_size: int,
    nodes: int,
    ranks_per_node: int,
    scaling: str = "symmetric",
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    chunks = x.detach().contiguous().view(nodes, ranks_per_node, -1 if x.numel() else 0)
    quantize = QUANTIZE_DEFINITIONS[0].reference
    found = [
        quantize(
            chunks[n, j],
            format,
            group_size,
            scaling,
            rounding_seed,
            rounding_offset + (n * ranks_per_node + j) * chunks.shape[2],
        )
        for j in range(ranks_per_node)
        for n in range(nodes)
    ]
    q, scales, zeros = (torch.stack(parts) for parts in zip(*found, strict=True))
    return q, scales, zeros


def _fake(
    x: torch.Tensor,
    format: str,
    group_size: int,
    nodes: int,
    ranks_per_node: int,
    scaling: str = "symmetric",
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    found = format_of("swizzle_quantize", format)
    ranks = nodes * ranks_per_node
    numel = x.numel() // ranks
    groups = groups_of(numel, group_size)
    return (
        x.new_empty((ranks, *packed_shape(found, (numel,))), dtype=found.dtype),
        x.new_empty((ranks, groups), dtype=torch.uint8 if scaling == "power_of_two" else torch.float32),
        x.new_empty((ranks, groups if scaling == "asymmetric" else 0), dtype=torch.int8),
    )


DEFINITIONS = (
    OpDefinition(
        schema=(
            "swizzle_quantize(Tensor x, str format, int group_size, int nodes, int ranks_per_node, "
            'str scaling="symmetric", int rounding_seed=-1, int rounding_offset=0) -> (Tensor, Tensor, Tensor)'
        ),
        check=_check,
        reference=_reference,
        fake=_fake,
        autograd=None,
        cases=SWIZZLE_CASES,
    ),
)
