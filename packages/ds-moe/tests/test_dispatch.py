"""Dispatch against a loop over experts: values and gradients to the bit, bytes to the byte, on one rank or several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from ds_core import comm
from ds_core.ops import grouped_matmul
from ds_core.testing import run_ranks
from ds_moe.dispatch import Dispatch, Groups
from ds_moe.errors import MoeConfigError, RoutingError

EXPERTS, HIDDEN, TOKENS, SLOTS = 4, 16, 24, 2


def weights() -> torch.Tensor:
    """[experts, H, H], the same on every rank."""
    return torch.randn(EXPERTS, HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(1))


def batch(skewed: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, experts, weights of slots and the gradient of the result, of a whole batch."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(TOKENS, HIDDEN, generator=generator)
    experts = torch.rand(TOKENS, EXPERTS, generator=generator).topk(SLOTS).indices
    experts[3, 0] = experts[7, 1] = -1
    if skewed:  # nobody asks for the experts of the last rank, and the last piece of the batch asks for none
        experts = experts.clamp(max=0)
        experts[TOKENS // 2 :] = -1
    return x, experts, torch.rand(TOKENS, SLOTS, generator=generator), torch.randn(TOKENS, HIDDEN, generator=generator)


def by_loop(skewed: bool = False) -> dict[str, torch.Tensor]:
    """Values and gradients of a plain loop over experts, on the whole batch in one process."""
    x, experts, slots, dy = batch(skewed)
    matrices = [matrix.requires_grad_() for matrix in weights().unbind(0)]
    x.requires_grad_(), slots.requires_grad_()
    y = torch.zeros_like(x)
    for expert, matrix in enumerate(matrices):
        token, slot = (experts == expert).nonzero(as_tuple=True)
        y = y.index_add(0, token, (x[token] @ matrix) * slots[token, slot].unsqueeze(1))
    y.backward(dy)
    dw = torch.stack([torch.zeros_like(m) if m.grad is None else m.grad for m in matrices])
    return {"y": y.detach(), "dx": x.grad, "dslots": slots.grad, "dw": dw}


def by_dispatch(skewed: bool = False, group: Any = None, overlapped: bool = False) -> dict[str, Any]:
    """The same of this rank's piece of the batch and its experts, with a report of what was sent."""
    rank, ranks = (0, 1) if group is None else (group.rank(), group.size())
    x, experts, slots, dy = (piece.chunk(ranks)[rank] for piece in batch(skewed))
    w = weights().chunk(ranks)[rank].clone().requires_grad_()
    x, slots = x.clone().requires_grad_(), slots.clone().requires_grad_()
    seen: list[Groups] = []

    def compute(rows: torch.Tensor, groups: Groups) -> torch.Tensor:
        seen.append(groups)
        return grouped_matmul(rows, w, groups.offsets)

    comm.reset()
    events: list[str] = []
    y = Dispatch(group, EXPERTS).run(
        x, experts, slots, compute, meanwhile=(lambda: events.append("meanwhile")) if overlapped else None
    )
    y.backward(dy)
    report = comm.report()
    return {
        "y": y.detach(),
        "dx": x.grad,
        "dslots": slots.grad,
        "dw": w.grad,
        "sizes": seen[0].sizes,
        "offsets": seen[0].offsets.tolist(),
        "calls": report.calls,
        "sent": report.bytes_sent,
        "events": events,
    }


def every_way() -> dict[str, dict[str, Any]]:
    group = dist.group.WORLD
    return {
        "spread": by_dispatch(group=group),
        "skewed": by_dispatch(skewed=True, group=group),
        "overlapped": by_dispatch(group=group, overlapped=True),
    }


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, dict[str, Any]]]:
    return run_ranks(every_way, request.param)


@pytest.mark.parametrize("skewed", [False, True])
def test_one_rank_is_a_loop_over_experts_to_the_bit(skewed: bool) -> None:
    want, got = by_loop(skewed), by_dispatch(skewed)
    for name in ("y", "dx", "dw"):
        assert torch.equal(got[name], want[name]), name
    # A slot's gradient is a dot product, which the op adds up in another order.
    torch.testing.assert_close(got["dslots"], want["dslots"], rtol=1e-6, atol=1e-6)
    assert got["calls"] == 0


@pytest.mark.parametrize("case", ["spread", "skewed"])
def test_many_ranks_are_one_rank_to_the_bit(ranks: list[dict[str, Any]], case: str) -> None:
    want = by_dispatch(skewed=case == "skewed")
    for name in ("y", "dx", "dw", "dslots"):
        assert torch.equal(torch.cat([rank[case][name] for rank in ranks]), want[name]), name


def test_runs_of_rows_are_told_in_both_forms(ranks: list[dict[str, Any]]) -> None:
    experts = batch()[1]
    counts = [int((experts == expert).sum()) for expert in range(EXPERTS)]
    assert [size for rank in ranks for size in rank["spread"]["sizes"]] == counts
    for rank in ranks:
        sizes = rank["spread"]["sizes"]
        assert rank["spread"]["offsets"] == [sum(sizes[:place]) for place in range(len(sizes) + 1)]


def test_a_rank_where_no_token_goes_and_one_that_sends_none_take_part(ranks: list[dict[str, Any]]) -> None:
    assert sum(ranks[-1]["skewed"]["sizes"]) == 0 and not ranks[-1]["skewed"]["y"].any()
    assert sum(ranks[0]["skewed"]["sizes"]) > 0


@pytest.mark.parametrize("case", ["spread", "skewed"])
def test_it_sends_the_rows_that_leave_twice_each_way_and_their_counts(ranks: list[dict[str, Any]], case: str) -> None:
    world, experts = len(ranks), batch(case == "skewed")[1]
    each = EXPERTS // world
    home = torch.arange(TOKENS).div(TOKENS // world, rounding_mode="floor").unsqueeze(1).expand_as(experts)
    away = experts.div(each, rounding_mode="floor")
    leaves = (experts >= 0) & (home != away)
    for rank, got in enumerate(ranks):
        out, into = int((leaves & (home == rank)).sum()), int((leaves & (away == rank)).sum())
        counts = EXPERTS * 8 * (world - 1) // world
        # There and back in forward, and the gradients of both in backward: a row that left is sent here twice, and
        # what came in twice.
        assert got[case]["sent"] == counts + 2 * (out + into) * HIDDEN * 4
        assert got[case]["calls"] == 5


def test_something_else_can_be_computed_while_rows_travel(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["overlapped"]["events"] == ["meanwhile"]
        assert torch.equal(rank["overlapped"]["y"], rank["spread"]["y"])


def test_a_token_without_an_expert_is_zeros_and_gets_no_gradient() -> None:
    x = torch.randn(3, HIDDEN, requires_grad=True)
    experts = torch.tensor([[0], [-1], [1]])
    y = Dispatch(None, 2).run(x, experts, torch.ones(3, 1), lambda rows, groups: rows * 2)
    y.sum().backward()
    assert not y[1].any() and not x.grad[1].any() and torch.equal(y[::2], 2 * x[::2])


def test_no_tokens_at_all_call_the_experts_with_no_rows() -> None:
    seen = []

    def compute(rows: torch.Tensor, groups: Groups) -> torch.Tensor:
        seen.append((tuple(rows.shape), groups.sizes))
        return rows

    y = Dispatch(None, 3).run(torch.randn(0, 5), torch.empty(0, 2, dtype=torch.int64), torch.empty(0, 2), compute)
    assert y.shape == (0, 5) and seen == [((0, 5), (0, 0, 0))]


def test_experts_that_do_not_divide_over_ranks_are_refused() -> None:
    with pytest.raises(MoeConfigError, match=r"multiple of the ranks .*got 0"):
        Dispatch(None, 0)


def test_shapes_that_do_not_fit_are_refused() -> None:
    run = Dispatch(None, 2).run
    with pytest.raises(RoutingError, match="flatten batch and sequence"):
        run(torch.randn(2, 3, 4), torch.zeros(6, 1, dtype=torch.int64), torch.ones(6, 1), lambda rows, groups: rows)
    with pytest.raises(RoutingError, match="5 tokens but experts for 6"):
        run(torch.randn(5, 4), torch.zeros(6, 1, dtype=torch.int64), torch.ones(6, 1), lambda rows, groups: rows)
