"""Stage 3 in use: reading and changing parameters, loading, generating, what is refused, and memory over time."""

from __future__ import annotations

import pytest
import torch
from stage3_model import WIDTH, Net, make, space_of

from ds_core.errors import EngineError, ModelError
from ds_core.testing import run_ranks


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
