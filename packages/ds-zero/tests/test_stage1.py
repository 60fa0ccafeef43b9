"""Stage 1 on real ranks: bit-equal to stage 0 and to DDP, in the bytes and the memory the paper promises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ds_core.layout import ALIGNMENT_NUMEL, plan_layout
from ds_core.testing import run_ranks

STEPS = 10
WIDTH = 7


class Zoo(nn.Module):
    """Odd sizes, a module used twice, tied weights, a frozen and an unused parameter, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(WIDTH, 13)
        self.twice = nn.Linear(13, 13)
        self.frozen = nn.Linear(13, 13)
        self.unused = nn.Linear(3, 5)
        self.head = nn.Linear(13, 13, bias=False)
        self.head.weight = self.twice.weight
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        for parameter in self.frozen.parameters():
            parameter.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.embed(x))
        h = torch.tanh(self.twice(torch.tanh(self.twice(h))))
        return self.head(self.frozen(h)) * self.gain


def data(rank: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + rank)
    return [torch.randn(4, WIDTH, generator=generator) for _ in range(count)]


def losses_of(model, x: torch.Tensor, backwards: int) -> list[torch.Tensor]:
    out = model(x).float()
    return [(out ** (2 + index)).mean() for index in range(backwards)]


def train(
    stage,
    *,
    accumulation=1,
    backwards=1,
    bucket=500_000_000,
    clip=0.0,
    native=True,
    steps=STEPS,
    zero_extra=None,
    **config,
):
    """Final state, last gradient norm, bytes sent per step by scope, and what the optimizer holds in bytes."""
    import torch.distributed as dist

    import ds_core
    from ds_core import comm

    model = Zoo()
    params = {"lr": 1e-2, "weight_decay": 0.1, **({} if native else {"torch_adam": True})}
    zero = {"stage": stage, "reduce_bucket_size": bucket, **(zero_extra or {})}
    engine = ds_core.initialize(
        model=model,
        config={
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": clip,
            "optimizer": {"type": "AdamW", "params": params},
            "zero_optimization": zero,
            **config,
        },
    )[0]
    comm.reset()
    for x in data(dist.get_rank(), steps * accumulation):
        parts = losses_of(engine, x.to(model.gain.dtype), backwards)
        for index, loss in enumerate(parts):
            engine.backward(loss, retain_graph=index + 1 < len(parts))
        engine.step()
    sent = {}
    for row in engine.comm_report().rows:
        sent[row.scope] = sent.get(row.scope, 0) + row.bytes_sent / steps
    inner = engine.optimizer.optimizer
    held = sum(
        t.numel() * t.element_size() for s in inner.state.values() for t in s.values() if torch.is_tensor(t) and t.dim()
    )
    masters = [p for group in inner.param_groups for p in group["params"]]
    held += sum(p.numel() * p.element_size() for p in masters if p.dtype != model.gain.dtype)
    trainable = [p for p in model.parameters() if p.requires_grad]
    numel = sum(p.numel() for p in trainable)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    engine.destroy()
    return state, engine.get_global_grad_norm(), sent, held, numel


def train_ddp(accumulation=1, backwards=1):
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(Zoo(), find_unused_parameters=True)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1, fused=True
    )
    rows = iter(data(dist.get_rank(), STEPS * accumulation))
    for _ in range(STEPS):
        for _ in range(accumulation):
            total = sum(loss / accumulation for loss in losses_of(model, next(rows), backwards))
            total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: tensor.detach().clone() for name, tensor in model.module.state_dict().items()}


def same(left: dict, right: dict) -> list[str]:
    return [name for name in left if not torch.equal(left[name], right[name])]


@pytest.mark.parametrize("native", [True, False], ids=["native", "torch"])
@pytest.mark.parametrize("world", [2, 4])
def test_stage_1_is_bit_equal_to_stage_0_over_the_grid(world, native):
    grid = [
        {"accumulation": 1},
        {"accumulation": 3, "backwards": 2},
        {"bucket": 100, "clip": 0.05},
        {"bf16": {"enabled": True}, "accumulation": 3},
        {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "accumulation": 2, "bucket": 100},
        {"fp16": {"enabled": True, "initial_scale_power": 8}},
        {"communication_data_type": "bf16"},
        {"prescale_gradients": True, "accumulation": 2},
        {"gradient_predivide_factor": 2.0},
    ]
    for cell in grid:
        replicated = run_ranks(train, world, 0, native=native, **cell)
        sharded = run_ranks(train, world, 1, native=native, **cell)
        assert replicated[0][1] == sharded[0][1], cell
        for rank in range(world):
            assert not same(replicated[0][0], replicated[rank][0]), cell
            assert not same(replicated[0][0], sharded[rank][0]), cell


def test_stochastic_rounding_draws_by_position_whoever_updates():
    cell = {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "stochastic_rounding": True}, "seed": 3}
    replicated, sharded = (run_ranks(train, 2, stage, **cell)[0][0] for stage in (0, 1))
    assert not same(replicated, sharded)
    nearest = {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}, "seed": 3}
    assert same(replicated, run_ranks(train, 2, 0, **nearest)[0][0])


@pytest.mark.parametrize("world", [1, 2])
def test_bucket_size_changes_no_number(world):
    # The clip coefficient comes from the norm, so clipping would show a norm that depends on how shards are cut.
    whole = run_ranks(train, world, 1, clip=0.01)[0]
    for bucket in (50, 100, 300):
        cut = run_ranks(train, world, 1, clip=0.01, bucket=bucket)[0]
        assert cut[1] == pytest.approx(whole[1], rel=1e-13)
        assert not same(whole[0], cut[0]), bucket


@pytest.mark.parametrize(("accumulation", "backwards"), [(1, 1), (2, 2)])
def test_two_ranks_are_bit_equal_to_ddp(accumulation, backwards):
    expected = run_ranks(train_ddp, 2, accumulation, backwards)[0]
    for stage in (0, 1):
        state = run_ranks(train, 2, stage, accumulation=accumulation, backwards=backwards, native=False)[0][0]
        if backwards == 1:
            assert not same(expected, state)
        else:
            # DDP adds the losses before one backward; here each has a backward of its own and gradients are added.
            for name in state:
                torch.testing.assert_close(state[name], expected[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize("world", [2, 4])
def test_bytes_sent_and_bytes_held_follow_the_formulas(world):
    for stage in (0, 1):
        _, _, sent, held, numel = run_ranks(train, world, stage, steps=2, bf16={"enabled": True})[0]
        shapes = [(name, p.shape) for name, p in Zoo().named_parameters() if p.requires_grad]
        layout = plan_layout(shapes, shards=world)
        padded = numel + layout.padding
        assert padded == layout.numel <= numel + ALIGNMENT_NUMEL * (len(shapes) + world)
        model_bytes = 2 * padded
        share = (world - 1) / world
        # 2 M (N-1)/N: an all-reduce at stage 0; a reduce-scatter and an all-gather at stage 1.
        assert sent["gradients"] + sent.get("parameters", 0) == 2 * model_bytes * share
        assert set(sent) <= {"gradients", "parameters", "gradient norm"}
        # 12 bytes of fp32 master and Adam moments a parameter, over the ranks at stage 1.
        assert held == 12 * padded / (world if stage else 1)


def sharded_rank_fails():
    import ds_core
    from ds_core.errors import ConfigError

    try:
        ds_core.initialize(
            model=Zoo(),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "optimizer": {"type": "Muon", "params": {"lr": 0.1}},
                "zero_optimization": {"stage": 1},
            },
        )
    except ConfigError as error:
        return str(error)
    return ""


def test_an_optimizer_that_mixes_elements_is_refused_with_the_setting_to_change():
    for message in run_ranks(sharded_rank_fails, 2):
        assert "zero_allow_untested_optimizer" in message or "zero_optimization.stage" in message


def checkpoint_round(stage, directory, save, steps):
    """Trains `steps` and saves, or loads and trains; returns states for comparison."""
    import torch.distributed as dist

    import ds_core

    model = Zoo()
    engine = ds_core.initialize(
        model=model,
        config={
            "train_micro_batch_size_per_gpu": 4,
            "train_batch_size": 4 * dist.get_world_size(),
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1}},
            "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 5, "warmup_max_lr": 0.01}},
            "zero_optimization": {"stage": stage},
            "bf16": {"enabled": True},
        },
    )[0]
    if not save:
        path, client = engine.load_checkpoint(directory)
        assert path is not None
        assert client == {"note": "kept"}
    for x in data(0, engine.global_steps + steps)[engine.global_steps :]:
        engine.backward(losses_of(engine, x.bfloat16(), 1)[0])
        engine.step()
    if save:
        engine.save_checkpoint(directory, client_state={"note": "kept"})
    return {name: t.detach().clone() for name, t in model.state_dict().items()}, engine.get_lr(), engine.global_steps


@pytest.mark.parametrize(("writers", "from_stage"), [(1, 0), (2, 1), (4, 1)])
def test_a_checkpoint_loads_at_any_number_of_ranks_and_stage(tmp_path, writers, from_stage):
    # Every rank sees the same data, so the run does not depend on the number of ranks beyond how sums are averaged,
    # which is exact for powers of two.
    folder = str(tmp_path / "run")
    run_ranks(checkpoint_round, writers, from_stage, folder, True, 3)
    straight = run_ranks(checkpoint_round, 1, 0, str(tmp_path / "straight"), True, 6)[0]
    for readers, stage in ((1, 1), (2, 0), (2, 1), (4, 1)):
        for state, rate, steps in run_ranks(checkpoint_round, readers, stage, folder, False, 3):
            assert steps == 6
            assert rate == straight[1]
            assert not same(straight[0], state)
