"""expert_permutation: from the experts of each token, where each of its copies lies when they are sorted by expert."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ds_core.errors import OpError
from ds_core.ops._top_k_gate import MOST_EXPERTS
from ds_core.ops.case import Fill, Layout, OpCase, TensorSpec
from ds_core.ops.checks import expect_dtype, expect_rows_exist
from ds_core.ops.definition import OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "ExpertPermutation", "expert_permutation", "most_places"]


class ExpertPermutation(NamedTuple):
    """What `expert_permutation` returns. A pair is a token and one of its slots: pair ``token * k + slot``.

    Args:
        places: [tokens, k] int64: where each pair lies; -1 for a pair without an expert, or that was dropped.
        pairs: [most places] int64: which pair lies there; -1 for padding and behind the last expert.
        tokens: [most places] int64: the token of that pair; -1 likewise.
        counts: [experts] int64: pairs that asked for each expert, dropped ones too.
        offsets: [experts + 1] int64: where each expert's places begin, and behind them how many places are in use.
    """

    places: torch.Tensor
    pairs: torch.Tensor
    tokens: torch.Tensor
    counts: torch.Tensor
    offsets: torch.Tensor


def expert_permutation(
    experts: torch.Tensor,
    num_experts: int,
    *,
    capacity: int = -1,
    multiple: int = 1,
    fixed: bool = False,
    first_choices_first: bool = False,
) -> ExpertPermutation:
    """Places of (token, slot) pairs sorted by expert, in the order of pairs within an expert.

    Rows go to their places with ``combine_rows(x, tokens.unsqueeze(1), ones)``, which puts zeros where there is no
    token (or with ``gather_rows(x, tokens)`` where nothing is padded or dropped), and come back with ``combine_rows(y,
    places, weights)``. No size depends on what `experts` holds, so nothing waits for the device: ``tokens`` is as long
    as it may ever have to be, and ``offsets[-1]`` says how much of it is in use.

    Args:
        experts: [tokens, k] int64 from 0 to ``num_experts - 1``; -1 for none.
        num_experts: 1 to 8192.
        capacity: pairs an expert takes; those that come later are dropped. Negative for all.
        multiple: each expert's places are filled up to a multiple of it, as products of blocks of rows want.
        fixed: every expert has `capacity` places (filled up to `multiple`) whether it needs them or not, so that
            ``tokens.view(num_experts, -1)`` is a table.
        first_choices_first: pairs come in the order of slots, then tokens: the first choices of all tokens are placed
            before any second one. Else in the order of tokens, then slots.

    Raises:
        OpError: an argument does not fit, or a value of `experts` names none.

    Source: capacity and first choices first: D. Lepikhin et al., "GShard", 2020, section 2.2 and algorithm 1.
    """
    call = torch.ops.ds.expert_permutation if not is_plain(experts) else _expert_permutation
    return ExpertPermutation(*call(experts, num_experts, capacity, multiple, fixed, first_choices_first))


def most_places(pairs: int, num_experts: int, capacity: int, multiple: int, fixed: bool) -> int:
    """Length of ``tokens``: what is enough for any values of so many pairs."""
    each = (capacity + multiple - 1) // multiple * multiple
    if fixed:
        return num_experts * each
    # Each expert in use wastes at most multiple - 1 places, and there are no more such than pairs.
    loose = (pairs + min(num_experts, pairs) * (multiple - 1)) // multiple * multiple
    return loose if capacity < 0 else min(loose, num_experts * each)


def _expert_permutation(*args: object) -> tuple[torch.Tensor, ...]:
    found: tuple[torch.Tensor, ...] = run(DEFINITIONS[0], *args)
    return found


def _check(
    experts: torch.Tensor, num_experts: int, capacity: int, multiple: int, fixed: bool, first_choices_first: bool
) -> None:
    op = "expert_permutation"
    expect_dtype(op, "experts", experts, (torch.int64,))
    if experts.dim() != 2:
        raise OpError(f"{op}: experts must be [tokens, k], got shape {tuple(experts.shape)}.")
    if not 1 <= num_experts <= MOST_EXPERTS:
        raise OpError(f"{op}: num_experts must be from 1 to {MOST_EXPERTS}, got {num_experts}.")
    if multiple < 1:
        raise OpError(f"{op}: multiple must be 1 or more, got {multiple}.")
    if fixed and capacity < 0:
        raise OpError(f"{op}: fixed needs a capacity of 0 or more, got {capacity}.")


def _reference(
    experts: torch.Tensor, num_experts: int, capacity: int, multiple: int, fixed: bool, first_choices_first: bool
) -> tuple[torch.Tensor, ...]:
    expect_rows_exist("expert_permutation", "experts", experts, num_experts, -1, " for none")
    tokens, k = experts.shape
    asked = (experts.t() if first_choices_first else experts).reshape(-1)
    counts = torch.bincount(asked[asked >= 0], minlength=num_experts)
    kept = counts if capacity < 0 else counts.clamp(max=capacity)
    room = torch.full_like(kept, capacity) if fixed else kept
    room = (room + multiple - 1) // multiple * multiple
    offsets = torch.nn.functional.pad(room.cumsum(0), (1, 0))

    order = asked.argsort(stable=True)[asked.numel() - int(counts.sum()) :]  # in the order of experts; -1 is before
    expert = asked[order]
    rank = torch.arange(order.numel(), device=experts.device) - (counts.cumsum(0) - counts)[expert]
    fits = rank < kept[expert]
    order, place = order[fits], (offsets[expert] + rank)[fits]
    pair = order % max(tokens, 1) * k + order // max(tokens, 1) if first_choices_first else order

    places = torch.full((tokens * k,), -1, dtype=torch.int64, device=experts.device)
    places[pair] = place
    size = most_places(tokens * k, num_experts, capacity, multiple, fixed)
    pairs = torch.full((size,), -1, dtype=torch.int64, device=experts.device)
    pairs[place] = pair
    return places.view(tokens, k), pairs, pairs // max(k, 1), counts, offsets


def _fake(
    experts: torch.Tensor, num_experts: int, capacity: int, multiple: int, fixed: bool, first_choices_first: bool
) -> tuple[torch.Tensor, ...]:
    size = most_places(experts.numel(), num_experts, capacity, multiple, fixed)
    return (
        experts.new_empty(tuple(experts.shape)),
        experts.new_empty((size,)),
        experts.new_empty((size,)),
        experts.new_empty((num_experts,)),
        experts.new_empty((num_experts + 1,)),
    )


_SHAPES = (
    # name, tokens, k, experts, capacity, multiple, fixed, layout
    ("one_slot", 50, 1, 4, -1, 1, False, Layout.CONTIGUOUS),
    ("two_slots", 77, 2, 8, -1, 1, False, Layout.CONTIGUOUS),
    ("padded", 130, 3, 5, -1, 16, False, Layout.CONTIGUOUS),
    ("dropped", 130, 2, 6, 31, 1, False, Layout.CONTIGUOUS),
    ("dropped_and_padded", 201, 2, 7, 50, 32, False, Layout.CONTIGUOUS),
    ("fixed", 100, 2, 9, 20, 8, True, Layout.CONTIGUOUS),
    ("no_room", 20, 2, 3, 0, 4, True, Layout.CONTIGUOUS),
    ("one_expert", 1500, 1, 1, -1, 8, False, Layout.CONTIGUOUS),
    ("more_experts_than_pairs", 9, 2, 300, -1, 4, False, Layout.CONTIGUOUS),
    ("many", 2100, 4, 67, -1, 1, False, Layout.CONTIGUOUS),
    ("many_experts", 600, 2, 1025, 3, 2, False, Layout.CONTIGUOUS),
    ("most_experts", 40, 2, 8192, -1, 1, False, Layout.CONTIGUOUS),
    ("no_tokens", 0, 2, 4, -1, 8, False, Layout.CONTIGUOUS),
    ("no_slots", 5, 0, 4, -1, 1, False, Layout.CONTIGUOUS),
    ("transposed", 40, 3, 4, 20, 1, False, Layout.TRANSPOSED),
    ("strided", 40, 4, 5, -1, 4, False, Layout.STRIDED),
    ("unaligned", 41, 2, 5, -1, 1, False, Layout.OFFSET),
)

DEFINITIONS = (
    OpDefinition(
        schema=(
            "expert_permutation(Tensor experts, SymInt num_experts, SymInt capacity, SymInt multiple, bool fixed, "
            "bool first_choices_first) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
        ),
        check=_check,
        reference=_reference,
        fake=_fake,
        autograd=None,
        cases=tuple(
            OpCase(
                f"{name}_by_{'slot' if by_slot else 'token'}",
                {"experts": TensorSpec((tokens, k), "int64", Fill.HOLES, experts, layout)},
                {
                    "num_experts": experts,
                    "capacity": capacity,
                    "multiple": multiple,
                    "fixed": fixed,
                    "first_choices_first": by_slot,
                },
            )
            for name, tokens, k, experts, capacity, multiple, fixed, layout in _SHAPES
            for by_slot in (False, True)
        ),
    ),
)
