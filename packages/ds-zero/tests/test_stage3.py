"""Stage 3 on real ranks: the numbers of stage 0 whatever a model does with its parameters, and no parameter lost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ds_core.errors import EngineError, ModelError
from ds_core.placeholder import is_placeholder
from ds_core.testing import run_ranks

WIDTH = 12
STEPS = 4


class Block(nn.Module):
    """Two linears, one of them of odd size."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 19), nn.Linear(19, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    """Blocks run as `mode` says; `rank` and `step` steer branches."""

    def __init__(self, mode: str, blocks: int = 4) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.mode = mode
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.last = nn.Linear(WIDTH, WIDTH)
        self.rank = self.step = 0
        if mode == "frozen":
            for parameter in self.blocks[1].parameters():
                parameter.requires_grad_(False)
        if mode == "first frozen":
            for block in self.blocks[:2]:
                block.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index in self.order():
            block = self.blocks[index]
            if self.mode.startswith("recompute"):
                x = checkpoint(block, x, use_reentrant=self.mode == "recompute re-entrant")
            else:
                x = block(x)
        if self.mode == "outside":  # another module's weights, and after it ran
            x = F.linear(F.linear(x, self.blocks[0].up.weight), self.blocks[0].down.weight)
        if self.mode == "transposed":
            x = x @ self.last.weight.t().contiguous() @ self.last.weight
        return self.last(x)

    def order(self) -> list[int]:
        count = len(self.blocks)
        if self.mode == "reused":
            return [0, 1, 0, 2, 3, 0]
        if self.mode == "reversed":
            return list(range(count))[::-1]
        if self.mode == "changing":
            return [[0, 1, 2, 3], [3, 1, 0, 2], [0, 3]][self.step % 3]
        if self.mode == "skipping":  # ranks take different branches
            return [0, 1 + self.rank % 2, 3] if self.step % 2 else [0, 2, 3, 1][: 3 + self.rank % 2]
        if self.mode == "unused":
            return [0, 1, 3]
        return list(range(count))


def make(stage: int, mode: str, **extra):
    import ds_core

    model = Net(mode)
    zero = {"stage": stage, "param_persistence_threshold": 20, **extra.pop("zero", {})}
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0.5,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1}},
        "zero_optimization": zero,
        **extra,
    }
    return model, ds_core.initialize(model=model, config=config)[0]


def space_of(engine):
    return next(part for part in engine.parts if part.name == "weights")._space


def train(stage, mode, *, evaluate=False, steps=STEPS, **extra):
    import torch.distributed as dist

    model, engine = make(stage, mode, **extra)
    model.rank = dist.get_rank()
    generator = torch.Generator().manual_seed(dist.get_rank())
    dtype = torch.bfloat16 if extra.get("bf16") else torch.float32
    losses = []
    for step in range(steps):
        model.step = step
        x = torch.randn(2, WIDTH, generator=generator).to(dtype)
        if evaluate:
            with torch.no_grad():
                losses.append(float(engine(x).float().square().mean()))
        loss = engine(x).float().square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(float(loss))
    norm = engine.get_global_grad_norm()
    state = {name: tensor.detach().clone() for name, tensor in engine.module.state_dict().items()}
    if stage == 3:
        assert all(is_placeholder(p.data) for p in space_of(engine).units[0].parameters)
        assert space_of(engine).coordinator.live_numel == 0
    engine.destroy()
    return losses, norm, state


def assert_same(left, right) -> None:
    assert left[0] == right[0]
    assert left[1] == right[1]
    for name in left[2]:
        assert torch.equal(left[2][name], right[2][name]), name


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


def generating():
    _, engine = make(3, "plain")
    engine.eval()
    with torch.no_grad():
        x = torch.ones(1, WIDTH)
        for _ in range(3):
            x = engine.module(x)  # not through the engine: as a generate() method does
        whole = engine.module.blocks[1](x)  # a submodule by itself
    return x, whole, space_of(engine).coordinator.live_numel


def test_evaluation_without_the_engine_and_by_submodule():
    model = Net("plain")
    with torch.no_grad():
        x = torch.ones(1, WIDTH)
        for _ in range(3):
            x = model(x)
        whole = model.blocks[1](x)
    for got_x, got_whole, live in run_ranks(generating, 2):
        assert torch.equal(got_x, x)
        assert torch.equal(got_whole, whole)
        assert live == 0


def parameters_between_steps():
    model, engine = make(3, "plain")
    weight = model.blocks[0].up.weight
    shape, nan = tuple(weight.shape), bool(weight.isnan().all())
    names = {name: tuple(tensor.shape) for name, tensor in engine.module.state_dict().items()}
    with pytest.raises(RuntimeError):
        weight.data.mul_(2.0)
    for change in (weight.data.fill_, lambda value: setattr(weight, "data", torch.full(shape, value))):
        change(0.0)
        with pytest.raises(ModelError, match=r"blocks\.0\.up\.weight.*GatheredParameters"):
            engine(torch.ones(2, WIDTH))
    return shape, nan, names


def test_a_sharded_parameter_keeps_its_shape_and_cannot_be_changed_in_silence():
    expected = {name: tuple(tensor.shape) for name, tensor in Net("plain").state_dict().items()}
    for shape, nan, names in run_ranks(parameters_between_steps, 2):
        assert shape == (19, WIDTH)
        assert nan
        assert names == expected


class Normalizing(Net):
    """Changes a weight in its forward, which no shard would see."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.last.weight.div_(2.0)
        return self.last(x)


def change_in_forward():
    import ds_core

    config = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 3, "param_persistence_threshold": 0}}
    config["optimizer"] = {"type": "AdamW"}
    engine = ds_core.initialize(model=Normalizing("plain"), config=config)[0]
    with pytest.raises(ModelError, match=r"last\.weight.*changed in place outside"):
        engine(torch.ones(2, WIDTH))
    return True


def test_a_change_in_forward_is_an_error():
    assert all(run_ranks(change_in_forward, 2))


def edit(stage, how):
    import torch.distributed as dist

    import ds_zero

    model, engine = make(stage, "plain", bf16={"enabled": True})
    optimizer = engine.optimizer.optimizer
    masters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [master.detach().clone() for master in masters]
    for master in masters:
        master.data.add_(1e-6)  # finer than bf16 can show
    finer = [master.detach().clone() for master in masters]
    weight = model.blocks[2].down.weight
    message = ""
    try:
        with ds_zero.GatheredParameters(weight, modifier_rank=0 if how == "one" else None):
            full = weight.detach().clone()
            if how != "one" or dist.get_rank() == 0:
                with torch.no_grad():
                    weight[3] = 5.0 if how != "differently" else dist.get_rank()
    except ModelError as error:
        message = str(error)
    moved = sum(int((now != old).sum()) for now, old in zip(masters, finer, strict=True))
    values = sorted({float(v) for now, old in zip(masters, finer, strict=True) for v in now[now != old]})
    with ds_zero.GatheredParameters([weight]):
        after = weight.detach().clone()
    del before
    return full, after, moved, values, message


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gathered_parameters_read_and_change(stage):
    for how in ("one", "all"):
        rows = run_ranks(edit, 2, stage, how)
        original = Net("plain").blocks[2].down.weight.detach().bfloat16()
        expected = original.clone()
        expected[3] = 5.0
        for full, after, _, _, message in rows:
            assert not message
            assert torch.equal(full, original)
            assert torch.equal(after, expected)
        # Masters follow where a value changed, and only there.
        moved = sum(row[2] for row in rows) // (2 if stage == 0 else 1)
        assert moved == 19
        assert {value for row in rows for value in row[3]} == {5.0}


def test_ranks_that_change_a_parameter_differently_are_told():
    for *_, message in run_ranks(edit, 2, 3, "differently"):
        assert "blocks.2.down.weight" in message
        assert "modifier_rank" in message


def diverge():
    import torch.distributed as dist

    _, engine = make(3, "plain")
    x = torch.ones(2, WIDTH)
    with pytest.raises(EngineError, match=r"rank 0 .*rank 1 "):
        if dist.get_rank() == 0:
            engine.module.blocks[0](x)
        else:
            engine.module.blocks[1](x)
    with pytest.raises(EngineError, match=r"different ways.*rank 0 .*forward.*rank 1 .*outside"):
        if dist.get_rank() == 0:
            engine(x)
        else:
            engine.module.blocks[0](x)
    return True


def test_ranks_that_call_different_modules_are_named():
    assert all(run_ranks(diverge, 2, timeout_s=60))


def loading():
    _, engine = make(3, "plain", bf16={"enabled": True})
    wanted = {name: torch.full_like(tensor, 0.25) for name, tensor in Net("plain").bfloat16().state_dict().items()}
    engine.load_module_state_dict(wanted)
    first = {name: tensor.clone() for name, tensor in engine.module_state_dict().items()}
    engine.module.load_state_dict({name: tensor * 2 for name, tensor in wanted.items()})
    second = engine.module.state_dict()
    masters = [p for group in engine.optimizer.optimizer.param_groups for p in group["params"]]
    held = {float(v) for master in masters for v in master.detach()} - {0.0}  # padding is zero
    return (
        all(bool((tensor == 0.25).all()) for tensor in first.values()),
        all(bool((tensor == 0.5).all()) for tensor in second.values()),
        held,
    )


def test_state_dicts_load_through_the_engine_and_through_the_module():
    for first, second, held in run_ranks(loading, 2):
        assert first
        assert second
        assert held == {0.5}


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


def sharded_twice():
    import ds_core

    model, first = make(3, "plain")
    with pytest.raises(ModelError, match=r"sharded already.*destroy"):
        ds_core.initialize(model=model, config={"train_micro_batch_size_per_gpu": 2, "optimizer": {"type": "AdamW"}})
    before = first.module_state_dict()
    first.destroy()
    ordinary = all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    config = {"train_micro_batch_size_per_gpu": 2, "optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 2}}
    second = ds_core.initialize(model=model, config=config)[0]
    return ordinary, float(second(torch.ones(2, WIDTH)).sum().detach())


def test_a_sharded_model_is_refused_until_its_engine_gives_it_back():
    with torch.no_grad():
        expected = float(Net("plain")(torch.ones(2, WIDTH)).sum())
    assert run_ranks(sharded_twice, 2) == [(True, expected)] * 2


def foreign_shards():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    import ds_core

    model = Net("plain")
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(ModelError, match=r"DTensor.*fully_shard"):
        ds_core.initialize(model=model, config={"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 3}})
    return True


def test_a_model_sharded_by_others_is_refused():
    assert all(run_ranks(foreign_shards, 2))


def generating_whole():
    import ds_zero
    from ds_core import comm

    _, engine = make(3, "plain")
    engine(torch.ones(1, WIDTH))
    with ds_zero.unwrap_model_for_generation(engine) as whole, torch.no_grad():
        comm.reset()
        x = torch.ones(1, WIDTH)
        for _ in range(3):
            x = whole(x)
        gathers = sum(row.calls for row in comm.report().rows if row.scope == "parameters")
    loss = engine(torch.ones(2, WIDTH)).square().mean()
    engine.backward(loss)
    engine.step()
    return x, gathers, space_of(engine).coordinator.live_numel


def test_generation_with_whole_parameters_gathers_nothing():
    model = Net("plain")
    with torch.no_grad():
        x = model(model(model(torch.ones(1, WIDTH))))
    for got, gathers, live in run_ranks(generating_whole, 2):
        assert torch.equal(got, x)
        assert (gathers, live) == (0, 0)


def resident_over_steps():
    import gc

    model, engine = make(3, "reused")
    counts = []
    for _ in range(300):
        engine.backward(engine(torch.ones(2, WIDTH)).square().mean())
        engine.step()
        if len(counts) < 2 or _ % 50 == 0:
            gc.collect()
            counts.append(sum(t.untyped_storage().nbytes() for t in gc.get_objects() if type(t) is torch.Tensor))
    engine.destroy()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    watched = [type(m._parameters) for m in model.modules()]
    left = [p for p in model.parameters() if p._post_accumulate_grad_hooks]
    return counts, hooks, watched, left, "apply" in model.__dict__


def test_memory_is_flat_over_300_steps_and_destroy_gives_everything_back():
    for counts, hooks, watched, left, applies in run_ranks(resident_over_steps, 2):
        assert max(counts[2:]) <= counts[2]
        assert hooks == 0
        assert set(watched) == {dict}
        assert not left
        assert not applies
