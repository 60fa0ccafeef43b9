"""Layouts for `ds_core.ops.block_sparse_attention`: which blocks of keys each block of queries sees.

Each function returns a [heads, blocks, blocks] bool tensor on the host, heads = 1 where all share one. With `causal`
a layout keeps no block above the diagonal; inside of the blocks on it, the op's own `causal` does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ds_core.errors import OpError

__all__ = [
    "bigbird_layout",
    "dense_layout",
    "fixed_layout",
    "longformer_layout",
    "sliding_window_layout",
    "variable_layout",
]


def dense_layout(blocks: int, *, causal: bool = False) -> torch.Tensor:
    """Every block."""
    return _finished(torch.ones(1, blocks, blocks, dtype=torch.bool), causal)


def sliding_window_layout(blocks: int, *, window_blocks: int = 3, causal: bool = False) -> torch.Tensor:
    """A band of `window_blocks` around the diagonal; with `causal`, its lower half.

    Raises:
        OpError: `window_blocks` is even or below 1.
    """
    return _finished(_window(blocks, window_blocks), causal)


def fixed_layout(
    blocks: int,
    *,
    local_blocks: int = 4,
    global_blocks: int = 1,
    horizontal: bool = False,
    patterns: int = 1,
    heads: int = 1,
    causal: bool = False,
) -> torch.Tensor:
    """Windows of `local_blocks` side by side, and `global_blocks` of each that everybody sees.

    Args:
        horizontal: the global blocks see everybody, too.
        patterns: head h takes as global those that end ``(h % patterns) * global_blocks`` before the end of a window.
        heads: of the layout; 1 unless there are several patterns.

    Raises:
        OpError: the global blocks of the patterns do not fit into a window.

    Source: R. Child et al., "Generating Long Sequences with Sparse Transformers", 2019, section 4.3 (fixed attention).
    """
    if not 1 <= patterns * global_blocks <= local_blocks:
        raise OpError(
            f"fixed_layout: patterns * global_blocks must be 1 to local_blocks = {local_blocks}, got {patterns} * "
            f"{global_blocks}."
        )
    place = torch.arange(blocks)
    local = place.unsqueeze(1) // local_blocks == place // local_blocks
    layout = local.repeat(heads, 1, 1)
    for head in range(heads):
        # The last window may be short: its representatives end where it ends.
        ends = torch.minimum((place // local_blocks + 1) * local_blocks, torch.tensor(blocks))
        last = ends - head % patterns * global_blocks
        chosen = (place >= last - global_blocks) & (place < last)
        layout[head] |= chosen
        if horizontal:
            layout[head] |= chosen.unsqueeze(1)
    return _finished(layout, causal)


def variable_layout(
    blocks: int,
    *,
    local_blocks: Sequence[int] = (4,),
    global_blocks: Sequence[int | tuple[int, int]] = (0,),
    random_blocks: int = 0,
    horizontal: bool = False,
    heads: int = 1,
    seed: int = 0,
    causal: bool = False,
) -> torch.Tensor:
    """Windows of given lengths (the last one repeats), given global blocks, and random ones for each query block.

    Args:
        global_blocks: numbers of blocks, or (first, end) ranges, that everybody sees; none past the end.
        horizontal: the global blocks see everybody, too.
        seed: of the random blocks, which differ from head to head.

    Raises:
        OpError: a window has no block, or there are fewer blocks than random ones.
    """
    if not local_blocks or min(local_blocks) < 1:
        raise OpError(f"variable_layout: local_blocks must be lengths of 1 or more, got {tuple(local_blocks)}.")
    window, number, ends = torch.empty(blocks, dtype=torch.int64), 0, 0
    while ends < blocks:
        length = local_blocks[min(number, len(local_blocks) - 1)]
        window[ends : ends + length] = number
        number, ends = number + 1, ends + length
    layout = (window.unsqueeze(1) == window).repeat(heads, 1, 1)
    for chosen in global_blocks:
        first, end = chosen if isinstance(chosen, tuple) else (chosen, chosen + 1)
        layout[:, :, first:end] = True
        if horizontal:
            layout[:, first:end] = True
    return _finished(layout | _random(blocks, random_blocks, heads, seed, causal), causal)


def bigbird_layout(
    blocks: int,
    *,
    random_blocks: int = 1,
    window_blocks: int = 3,
    global_blocks: int = 1,
    heads: int = 1,
    seed: int = 0,
    causal: bool = False,
) -> torch.Tensor:
    """A band around the diagonal, the first `global_blocks` seen by and (unless causal) seeing all, and random blocks.

    Raises:
        OpError: there are fewer blocks than random ones, or `window_blocks` is even.

    Source: M. Zaheer et al., "Big Bird: Transformers for Longer Sequences", 2020, section 2 (internal construction).
    """
    layout = _window(blocks, window_blocks).repeat(heads, 1, 1)
    layout[:, :, :global_blocks] = True
    layout[:, :global_blocks] = True
    return _finished(layout | _random(blocks, random_blocks, heads, seed, causal), causal)


def longformer_layout(
    blocks: int,
    *,
    window_blocks: int = 3,
    global_blocks: Sequence[int | tuple[int, int]] = (0,),
    causal: bool = False,
) -> torch.Tensor:
    """A band around the diagonal, and global blocks (numbers or ranges) seen by and (unless causal) seeing all.

    Raises:
        OpError: `window_blocks` is even or below 1.

    Source: I. Beltagy, M. Peters, A. Cohan, "Longformer: The Long-Document Transformer", 2020, section 3.1.
    """
    layout = _window(blocks, window_blocks)
    for chosen in global_blocks:
        first, end = chosen if isinstance(chosen, tuple) else (chosen, chosen + 1)
        layout[:, :, first:end] = True
        layout[:, first:end] = True
    return _finished(layout, causal)


def _window(blocks: int, window_blocks: int) -> torch.Tensor:
    if window_blocks < 1 or window_blocks % 2 == 0:
        raise OpError(f"window_blocks must be odd, as many before as after a block, got {window_blocks}.")
    place = torch.arange(blocks)
    return ((place.unsqueeze(1) - place).abs() <= window_blocks // 2).unsqueeze(0)


def _random(blocks: int, count: int, heads: int, seed: int, causal: bool) -> torch.Tensor:
    """`count` blocks of each query block, or all that there are before it."""
    if not 0 <= count <= blocks:
        raise OpError(f"random_blocks must be 0 to the {blocks} blocks there are, got {count}.")
    drawn = torch.rand(heads, blocks, blocks, generator=torch.Generator().manual_seed(seed))
    if causal:
        drawn = drawn.masked_fill(torch.ones(blocks, blocks, dtype=torch.bool).triu(1), -1.0)
    chosen = torch.zeros(heads, blocks, blocks, dtype=torch.bool)
    return chosen.scatter_(2, drawn.topk(count, -1).indices, True)


def _finished(layout: torch.Tensor, causal: bool) -> torch.Tensor:
    return layout.tril() if causal else layout
