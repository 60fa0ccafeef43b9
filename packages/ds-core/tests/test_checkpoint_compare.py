"""Two checkpoints are compared to the bit, across formats, and a difference is measured."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import ds_core
from ds_core.checkpoint import open_source
from ds_core.checkpoint.manage import compare as module
from ds_core.checkpoint.manage.compare import common_bytes, compare
from ds_core.checkpoint.weights.export import export_weights


class Held:
    """A source of tensors in memory."""

    path, format, strict = "memory", "test", True

    def __init__(self, values=None, counters=None, client_state=None, **tensors) -> None:
        self.tensors = {name: torch.as_tensor(tensor) for name, tensor in tensors.items()}
        self.values, self.counters, self.client_state = values or {}, counters or {}, client_state or {}

    def keys(self):
        return list(self.tensors)

    def shape(self, key):
        return tuple(self.tensors[key].shape)

    def dtype(self, key):
        return self.tensors[key].dtype

    def read(self, key, out, start=0):
        out.copy_(self.tensors[key].reshape(-1)[start : start + out.numel()])

    def value(self, name, default=None):
        return self.values.get(name, default)


def only(left, right, **options):
    (difference,) = compare(Held(a=left), Held(a=right), **options).tensors
    return difference


def floats(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [1.0, -1.0, 0.0])
def test_neighbouring_floats_are_one_ulp_apart(dtype, value):
    left = floats(value, 3.0, dtype=dtype)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    right = left.clone()
    right.view(bits)[0] += 1
    found = only(left, right)
    assert (found.unequal, found.numel, found.max_ulp) == (1, 2, 1)
    assert found.max_abs == float((left.double() - right.double()).abs().max())


def test_ulps_are_counted_across_zero():
    tiny = math.ldexp(1.0, -149)
    assert only(floats(tiny), floats(-2 * tiny)).max_ulp == 3


def test_every_bit_counts_unless_there_is_a_tolerance():
    left, right = floats(0.0, 1.0, 2.0), floats(-0.0, 1.0, 2.5)
    assert only(left, right).unequal == 2
    assert only(left, right, tolerance=0.25).unequal == 1
    assert not compare(Held(a=left), Held(a=right), tolerance=0.5)


def test_infinities_and_nans():
    inf, nan = math.inf, math.nan
    assert not compare(Held(a=floats(inf, nan)), Held(a=floats(inf, nan)), tolerance=0.1)
    assert not compare(Held(a=floats(inf, nan)), Held(a=floats(inf, nan)))
    assert math.isnan(only(floats(nan, 1.0), floats(2.0, 9.0), tolerance=0.1).max_abs)
    assert only(floats(inf), floats(1.0), tolerance=0.1).max_abs == inf
    assert only(floats(nan), floats(1.0)).max_ulp == 0


def test_integers_and_booleans():
    found = only(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 5]))
    assert (found.unequal, found.max_abs, found.max_ulp) == (1, 2.0, None)
    assert only(torch.tensor([True, False]), torch.tensor([True, True])).unequal == 1
    assert only(torch.tensor([1 + 2j]), torch.tensor([1 - 2j])).max_abs == 4.0


def test_other_dtypes_are_told_and_values_compared():
    found = only(floats(1.0, 1.001), floats(1.0, 1.001).bfloat16())
    assert (found.left, found.right) == ("float32 [2]", "bfloat16 [2]")
    assert (found.unequal, found.max_ulp) == (1, None)
    assert only(floats(1.0), floats(1.0).bfloat16()).unequal == 0


def test_what_is_on_one_side_or_of_another_shape():
    left, right = Held(a=floats(1.0), b=floats(1.0)), Held(b=floats(1.0, 2.0), c=floats(1.0))
    found = compare(left, right)
    assert [(d.key, d.left, d.right, d.unequal) for d in found.tensors] == [
        ("a", "float32 [1]", None, None),
        ("b", "float32 [1]", "float32 [2]", None),
        ("c", None, "float32 [1]", None),
    ]
    assert found.compared == 0


def test_values_that_differ_are_named():
    left = Held({"optimizer": {"groups": [{"lr": 0.1, "betas": [0.9, 0.99]}]}}, {"global_steps": 3}, {"x": math.nan})
    right = Held({"optimizer": {"groups": [{"lr": 0.2, "betas": [0.9, 0.99]}]}}, {"global_steps": 3}, {"x": math.nan})
    right.client_state["y"] = None
    found = compare(left, right).values
    assert [(d.place, d.left, d.right) for d in found] == [
        ("client_state.y", "(missing)", None),
        ("values.optimizer.groups[0].lr", 0.1, 0.2),
    ]
    assert not compare(left, right, pattern="model/*")


def test_blocks_add_up(monkeypatch):
    left = torch.arange(1000, dtype=torch.float32)
    right = left.clone()
    right[[5, 500, 999]] += torch.tensor([1.0, 4.0, 2.0])
    whole = only(left, right)
    monkeypatch.setattr(module, "BLOCK_NUMEL", 7)
    told = []
    assert only(left, right, told=told.append) == whole
    assert (whole.unequal, whole.max_abs) == (3, 4.0)
    assert sum(told) == 4000 == common_bytes(Held(a=left), Held(a=right))
    assert max(told) == 28


def test_a_checkpoint_and_its_export_hold_the_same_weights(tmp_path):
    torch.manual_seed(0)
    config = {"train_micro_batch_size_per_gpu": 2, "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}}}
    engine = ds_core.initialize(model=nn.Linear(5, 3), config=config)[0]
    for tag in ("a", "b"):
        engine.backward(engine(torch.randn(2, 5)).square().mean())
        engine.step()
        engine.save_checkpoint(tmp_path, tag=tag)
    a, b = open_source(tmp_path, "a"), open_source(tmp_path, "b")
    assert not compare(a, open_source(tmp_path, "a"))
    found = compare(a, b)
    assert {d.key for d in found.tensors} >= {"model/weight", "optimizer/exp_avg/bias"}
    assert "counters.global_steps" in {d.place for d in found.values}
    export_weights(a, tmp_path / "one")
    export_weights(b, tmp_path / "two")
    assert (tmp_path / "one/model.safetensors").read_bytes() != (tmp_path / "two/model.safetensors").read_bytes()
