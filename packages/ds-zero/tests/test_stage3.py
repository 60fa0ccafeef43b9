"""Stage 3 on real ranks: the numbers of stage 0 whatever a model does with its parameters, and no parameter lost."""

from __future__ import annotations

import pytest
import torch
from stage3_model import WIDTH, assert_same, make, space_of, train

from ds_core.testing import run_ranks

MODES = [
    "plain",
    "reversed",
    "reused",
    "outside",
    "transposed",
    "changing",
    "skipping",
    "unused",
    "frozen",
    "first frozen",
    "recompute",
    "recompute re-entrant",
]


@pytest.mark.parametrize("mode", MODES)
def test_equals_stage_0_bit_for_bit(mode):
    extra = {"evaluate": mode == "plain"}
    if mode == "recompute re-entrant":
        extra["steps"] = 2
    for replicated, sharded in zip(
        run_ranks(train, 2, 0, mode, **extra), run_ranks(train, 2, 3, mode, **extra), strict=True
    ):
        assert_same(replicated, sharded)


@pytest.mark.parametrize("mode", ["reused", "skipping"])
def test_equals_stage_0_on_four_ranks_and_in_bf16(mode):
    for extra in ({}, {"bf16": {"enabled": True}}):
        for replicated, sharded in zip(
            run_ranks(train, 4, 0, mode, **extra), run_ranks(train, 4, 3, mode, **extra), strict=True
        ):
            assert_same(replicated, sharded)


@pytest.mark.parametrize(
    "zero",
    [
        {"overlap_comm": False},
        {"allgather_sequential": True},
        {"prefetch_bucket_size": 0},
        {"prefetch_bucket_size": 10**9, "max_reuse_distance": 10**9},
        {"max_live_parameters": 1},
        {"module_granularity_threshold": 10**6},
        {"reduce_bucket_size": 100},
        {"reduce_scatter": False},
    ],
    ids=str,
)
def test_no_setting_changes_a_number(zero):
    for mode in ("reused", "skipping"):
        plain = run_ranks(train, 2, 0, mode, zero={k: v for k, v in zero.items() if k == "reduce_bucket_size"})
        for expected, got in zip(plain, run_ranks(train, 2, 3, mode, zero=zero), strict=True):
            if "module_granularity_threshold" in zero:  # other buckets: the norm is added up in other groups
                assert got[0] == pytest.approx(expected[0], rel=1e-6)
            else:
                assert_same(expected, got)


def compiled(stage):
    model, engine = make(stage, "plain")
    for block in model.blocks[:2]:
        block.compile(backend="aot_eager")
    model.blocks[2] = torch.compile(model.blocks[2], backend="aot_eager")
    losses = []
    for step in range(2):
        loss = engine(torch.full((2, WIDTH), 0.1 * (step + 1))).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(float(loss))
    return losses


def test_inner_modules_may_be_compiled():
    assert run_ranks(compiled, 2, 3) == run_ranks(compiled, 2, 0)


def bytes_of_a_step(stage):
    from ds_core import comm

    _, engine = make(stage, "plain", bf16={"enabled": True})
    for step in range(4):
        if step == 3:
            comm.reset()
        # An input with a gradient, so that backward reads the first weight too.
        x = torch.ones(2, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        engine.backward(engine(x).float().square().mean())
        engine.step()
    sent: dict[str, int] = {}
    calls: dict[str, int] = {}
    for row in engine.comm_report().rows:
        sent[row.scope] = sent.get(row.scope, 0) + row.bytes_sent
        calls[row.scope] = calls.get(row.scope, 0) + row.calls
    space = space_of(engine)
    units = sum(unit.numel for unit in space.units) if stage == 3 else 0
    whole = sum(flat.layout.numel for flat in space.groups)
    shards = 0
    if stage == 3:
        shards = sum(t.numel() for flat in space.groups for t in flat.values.shards)
    return sent, calls, whole, units, shards, len(space.units) if stage == 3 else 0


@pytest.mark.parametrize("world", [2, 4])
def test_bytes_sent_and_held(world):
    sent, calls, whole, units, shards, count = run_ranks(bytes_of_a_step, world, 3)[0]
    share = (world - 1) / world
    small = whole - units
    # Gradients once; what is sharded twice, in forward and in backward; what is small once, after the update.
    assert sent["gradients"] == 2 * whole * share
    assert sent["parameters"] == 2 * (2 * units + small) * share
    assert calls["parameters"] == 2 * count + 1
    assert calls["gather control"] == 4
    assert shards == whole // world
