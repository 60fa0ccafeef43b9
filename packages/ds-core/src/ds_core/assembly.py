"""Assembly: the parts that ranks hold of a parameter's values put together, by one all-gather."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from ds_core import comm

if TYPE_CHECKING:
    from ds_core.parts.inspection import Inspection, Spot

__all__ = ["Assembled", "assemble", "full_gradients", "wide"]


LOCAL, REDUCED = 1, 2
"""What a rank says of a gradient: it has some that has not met others', or had some that did."""


class Assembled(NamedTuple):
    """Full values, each 1-D, and for each parameter what every rank said of it."""

    values: list[torch.Tensor]
    flags: list[list[int]]


def wide(spots: Sequence[Spot]) -> torch.dtype:
    """The dtype values are handed out in: float32, or wider where the model is."""
    return functools.reduce(torch.promote_types, (spot.flat.dtype for spot in spots), torch.float32)


def assemble(
    home: Inspection,
    spots: Sequence[Spot],
    mine: Sequence[torch.Tensor | None],
    flags: Sequence[int] | None = None,
) -> Assembled:
    """Full values of `spots`. Called on all ranks that hold them.

    One all-gather for parameters of the same replicas, padded to the longest part, or none.

    Args:
        home: of their engine.
        spots: the parameters.
        mine: this rank's part of each, 1-D; None, on all ranks alike, where there is nothing to gather.
        flags: a small number for each, told to all ranks; None where that is not needed.
    """
    dtype, device = wide(spots), spots[0].flat.device
    values = [
        torch.empty(0 if part is None else spot.slot.numel, dtype=dtype, device=device)
        for spot, part in zip(spots, mine, strict=True)
    ]
    said: list[list[int]] = [[flag] for flag in flags or ()]
    by_holders: dict[tuple[int, ...], list[int]] = {}
    for i, spot in enumerate(spots):
        by_holders.setdefault(spot.flat.replicas.members, []).append(i)
    for places in by_holders.values():
        some = [None if flags is None else flags[i] for i in places]
        rows = _assemble(home, [(i, spots[i], mine[i]) for i in places], [f for f in some if f is not None], values)
        for i, row in zip(places, rows, strict=False):
            said[i] = row
    return Assembled(values, said)


def _assemble(
    home: Inspection,
    wanted: Sequence[tuple[int, Spot, torch.Tensor | None]],
    head: Sequence[int],
    values: Sequence[torch.Tensor],
) -> list[list[int]]:
    """Fills `values` for spots of the same replicas; what each of these said of every spot, where there is a head."""
    holders = wanted[0][1].flat.replicas
    shared = [(i, spot) for i, spot, part in wanted if part is not None and not home.is_whole(spot)]
    for i, spot, part in wanted:
        if part is not None and spot.slot.numel and home.is_whole(spot):
            values[i].copy_(part)
    if holders.ranks == 1 or (not head and not shared):
        return [[flag] for flag in head]
    shares = [[(i, spot, home.share(spot, rank)) for i, spot in shared] for rank in range(holders.ranks)]
    longest = max(sum(part.numel for _, _, part in rows if part is not None) for rows in shares)
    like = values[wanted[0][0]]
    payload = torch.zeros(len(head) + longest, dtype=like.dtype, device=like.device)
    payload[: len(head)].copy_(torch.tensor(head, dtype=like.dtype))
    at, own = len(head), {i: part for i, _, part in wanted}
    for i, _ in shared:
        part = own[i]
        assert part is not None
        payload[at : at + part.numel()].copy_(part)
        at += part.numel()
    table = torch.empty(holders.ranks * payload.numel(), dtype=like.dtype, device=like.device)
    with comm.scope("inspection"):
        comm.all_gather_into_tensor(table, payload, group=holders.group)
    for row, placed in zip(table.view(holders.ranks, -1), shares, strict=True):
        at = len(head)
        for i, spot, share in placed:
            if share is not None:
                start = share.start - spot.slot.start
                values[i][start : start + share.numel].copy_(row[at : at + share.numel])
                at += share.numel
    said = table.view(holders.ranks, -1)[:, : len(head)].cpu().T
    return [[int(flag) for flag in row] for row in said.tolist()]


def full_gradients(home: Inspection, spots: Sequence[Spot]) -> list[torch.Tensor | None]:
    """Averaged, unscaled gradients in the parameters' shapes; None where no rank had one. Called on all ranks.

    What has not met those of other ranks is added up in copies, as the exchange would do it, and stays as it is.
    """
    locals_: list[torch.Tensor | None] = []
    mine: list[torch.Tensor | None] = []
    flags: list[int] = []
    for spot in spots:
        trains = spot.slot.numel > 0 and not spot.flat.is_frozen
        local = spot.flat.gradients.local(spot.place) if trains else None
        has_met = trains and spot.flat.gradients.is_reduced(spot.bucket)
        had_some = has_met and spot.flat.gradients.used[spot.place]
        locals_.append(local)
        mine.append(home.reduced(spot) if has_met else None)
        flags.append(LOCAL * (local is not None) + REDUCED * had_some)
    values, said = assemble(home, spots, mine, flags)
    found: list[torch.Tensor | None] = []
    for spot, value, row, local in zip(spots, values, said, locals_, strict=True):
        if not any(row):
            found.append(None)
            continue
        if any(flag & LOCAL for flag in row):
            unmet = _sum_of_locals(home, spot, local)
            value = value.to(unmet.dtype) + unmet if value.numel() else unmet
        found.append(value.to(wide([spot])).mul_(home.grad_factor).view(spot.slot.shape))
    return found


def _sum_of_locals(home: Inspection, spot: Spot, local: torch.Tensor | None) -> torch.Tensor:
    """The sum over ranks, 1-D, with the scale, the dtypes and the order that the exchange has."""
    space, flat, numel = home.space, spot.flat, spot.slot.numel
    holders = flat.replicas
    length = -(-numel // holders.ranks) * holders.ranks
    piece = torch.zeros(length, dtype=flat.grad_dtype, device=flat.device)
    if local is not None:
        piece[:numel].copy_(local.view(-1))
    if space.factors[0] != 1.0:
        piece.mul_(space.factors[0])
    if holders.ranks > 1:
        piece = piece.to(flat.reduce_dtype or piece.dtype)
        with comm.scope("inspection"):
            comm.all_reduce(piece, group=holders.group)
    return piece[:numel].to(flat.grad_dtype)
