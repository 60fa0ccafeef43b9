"""`Init`: the values of plain construction, never the whole model on a rank, and engines that take the pieces over."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ds_core.errors import ConfigError, ModelError
from ds_core.placeholder import is_placeholder
from ds_core.testing import run_ranks

WIDTH = 64


def build(blocks: int = 2) -> nn.Module:
    layers = [layer for _ in range(blocks) for layer in (nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Tanh())]
    model = nn.Sequential(nn.Linear(5, WIDTH), *layers, nn.Linear(WIDTH, 3))
    nn.init.trunc_normal_(model[-1].weight, std=0.02)
    model[1].weight = model[1].weight
    return model


def plain(seed: int = 11) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: parameter.detach().clone() for name, parameter in build().named_parameters()}


def constructed(stage):
    import torch.distributed as dist

    import ds_core
    import ds_zero

    torch.manual_seed(11 + dist.get_rank())  # the first rank's seed counts
    with ds_zero.Init():
        model = build()
    stand_ins = [name for name, p in model.named_parameters() if is_placeholder(p.data)]
    with ds_zero.GatheredParameters(model):
        early = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
        "zero_optimization": {"stage": stage, "param_persistence_threshold": 100},
    }
    engine = ds_core.initialize(model=model, config=config)[0]
    late = {name: tensor.clone() for name, tensor in engine.module_state_dict().items()}
    losses = []
    for _ in range(3):
        loss = engine(torch.ones(2, 5)).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(float(loss))
    return stand_ins, early, late, losses


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_same_values_as_plain_construction_from_the_same_seed(stage):
    expected = plain()
    for stand_ins, early, late, losses in run_ranks(constructed, 2, stage):
        assert len(stand_ins) == len(expected)
        for name, value in expected.items():
            assert torch.equal(early[name], value), name
            assert torch.equal(late[name], value), name
        assert losses[2] < losses[0]


def edited_before_engine():
    import torch.distributed as dist

    import ds_zero

    with ds_zero.Init(dtype=torch.bfloat16):
        layer = nn.Linear(6, 7)
        with ds_zero.GatheredParameters(layer.bias, modifier_rank=0):
            nn.init.constant_(layer.bias, 3.0)  # recorded with the construction
    with ds_zero.GatheredParameters([layer.weight], modifier_rank=1):
        layer.weight.data.fill_(float(dist.get_rank()))
    with pytest.raises(ModelError, match="modifier_rank"), ds_zero.GatheredParameters([layer.weight]):
        layer.weight.data.fill_(float(dist.get_rank()))
        torch._C._autograd._unsafe_set_version_counter((layer.weight,), (layer.weight._version + 1,))
    with pytest.raises(RuntimeError):
        layer.weight.data.mul_(2.0)
    with ds_zero.GatheredParameters(layer):
        return layer.weight.detach().clone(), layer.bias.detach().clone()


def test_parameters_are_edited_before_there_is_an_engine():
    for weight, bias in run_ranks(edited_before_engine, 2):
        assert weight.dtype is torch.bfloat16
        assert torch.equal(weight, torch.ones(7, 6, dtype=torch.bfloat16))
        assert torch.equal(bias, torch.full((7,), 3.0, dtype=torch.bfloat16))


def bytes_while_constructing(blocks):
    import gc

    import ds_zero

    tracked = []

    class Account(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            live = {}
            for item in gc.get_objects():
                if isinstance(item, torch.Tensor):
                    storage = item.untyped_storage()
                    live[storage._cdata] = storage.nbytes()
            tracked.append(sum(live.values()))
            return result

    init = ds_zero.Init()
    with init:
        model = build(blocks)
        recorded = init._recording
        before = sum({p.untyped_storage()._cdata: p.untyped_storage().nbytes() for p in model.parameters()}.values())
    del recorded
    kept = sum(p.untyped_storage().nbytes() for p in model.parameters())
    return before, kept, sum(p.numel() * 4 for p in model.parameters())


def test_construction_takes_no_memory_and_leaves_pieces():
    for before, kept, whole in run_ranks(bytes_while_constructing, 2, 8):
        assert before == 0
        assert kept < whole / 50  # stand-ins: one element each


def existing():
    import torch.distributed as dist

    import ds_zero

    torch.manual_seed(dist.get_rank())
    model = build()
    ds_zero.Init(module=model)
    with pytest.raises(ModelError, match="sharded already"):
        ds_zero.Init(module=model)
    with ds_zero.GatheredParameters(model):
        return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_an_existing_module_takes_the_first_ranks_values():
    expected = plain(seed=0)
    for values in run_ranks(existing, 2):
        assert all(torch.equal(values[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"remote_device": "nvme"}, "remote_device"),
        ({"mpu": object()}, "mpu"),
        ({"zero_quantized_weights": True}, "zero_q"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_arguments_that_are_not_served_are_refused_by_name(arguments, message):
    import ds_zero

    with pytest.raises(ConfigError, match=message):
        ds_zero.Init(**arguments)


def test_an_error_in_the_constructor_passes_through():
    import ds_zero

    with pytest.raises(ZeroDivisionError), ds_zero.Init():
        nn.Linear(3, 3)
        raise ZeroDivisionError
    assert torch.equal(torch.ones(2), torch.full((2,), 1.0))  # nothing is recorded any more
