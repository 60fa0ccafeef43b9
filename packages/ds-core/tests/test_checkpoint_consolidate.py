"""Weights leave a checkpoint whole and in fp32, without an engine, and nothing is larger in memory than a block."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ds_core
from ds_core.checkpoint import Disk, open_source
from ds_core.checkpoint.weights.consolidate import (
    convert_zero_checkpoint_to_fp32_state_dict,
    get_fp32_state_dict_from_zero_checkpoint,
    load_state_dict_from_zero_checkpoint,
    to_torch_tensor,
)
from ds_core.checkpoint.weights.export import export_weights
from ds_core.errors import CheckpointError
from ds_core.testing import run_ranks
from ds_core.utils import safe_get_full_fp32_param


class Model(nn.Module):
    """Tied, frozen and trained parameters; buffers of a float and an integer dtype."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.norm = nn.BatchNorm1d(8)
        self.body = nn.Sequential(nn.Linear(8, width), nn.Linear(width, 8))
        self.first = nn.Linear(8, 8, bias=False)
        self.last = nn.Linear(8, 8, bias=False)
        self.last.weight = self.first.weight
        self.frozen = nn.Linear(8, 8)
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.frozen(self.body(self.norm(self.first(x))))).square().mean()


def trained(**changes):
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
        **changes,
    }
    engine = ds_core.initialize(model=Model(), config=config)[0]
    dtype = engine.module.first.weight.dtype
    for step in range(3):
        loss = engine(torch.randn(4, 8, generator=torch.Generator().manual_seed(step)).to(dtype))
        engine.backward(loss)
        engine.step()
    return engine


def saved(folder, **changes) -> dict[str, torch.Tensor]:
    """Trains and saves; the weights in fp32, masters where there are any."""
    engine = trained(**changes)
    engine.save_checkpoint(folder)
    exact = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
    exact = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in exact.items()}
    for name, parameter in engine.module.named_parameters(remove_duplicate=False):
        exact[name] = safe_get_full_fp32_param(parameter)
    engine.destroy()
    return exact


def same(found, wanted) -> bool:
    return set(found) == set(wanted) and all(
        found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name]) for name in wanted
    )


BF16 = {"bf16": {"enabled": True}}


@pytest.mark.parametrize("mode", [{}, BF16])
def test_a_state_dict_in_fp32_is_the_masters_with_every_name(tmp_path, mode):
    wanted = saved(tmp_path, **mode)
    found = get_fp32_state_dict_from_zero_checkpoint(tmp_path)
    assert same(found, wanted)
    assert found["last.weight"] is found["first.weight"]
    assert found["norm.num_batches_tracked"].dtype == torch.int64


def test_lazy_tensors_read_when_asked(tmp_path):
    wanted = saved(tmp_path, **BF16)
    lazy = get_fp32_state_dict_from_zero_checkpoint(tmp_path, lazy_mode=True)
    one = lazy["body.0.weight"]
    assert (tuple(one.shape), one.dtype, one.numel()) == ((8, 8), torch.float32, 64)
    assert torch.equal(one.contiguous(), wanted["body.0.weight"])
    empty = to_torch_tensor(lazy, return_empty_tensor=True)
    assert {name: tensor.shape for name, tensor in empty.items()} == {n: t.shape for n, t in wanted.items()}
    whole = to_torch_tensor(lazy)
    assert same(whole, wanted)
    assert whole["last.weight"] is whole["first.weight"]


def test_frozen_parameters_can_be_left_out(tmp_path):
    wanted = saved(tmp_path, **BF16)
    found = get_fp32_state_dict_from_zero_checkpoint(tmp_path, exclude_frozen_parameters=True)
    assert set(wanted) - set(found) == {"frozen.weight", "frozen.bias"}


def test_files_are_sharded_by_size_and_hold_each_parameter_once(tmp_path):
    wanted = saved(tmp_path / "ckpt", **BF16)
    out = tmp_path / "out"
    convert_zero_checkpoint_to_fp32_state_dict(tmp_path / "ckpt", out, max_shard_size="600B")
    names = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    del wanted["last.weight"]
    found = {}
    for file in sorted(set(names.values())):
        held = load_file(out / file)
        assert sum(tensor.nbytes for tensor in held.values()) <= 600
        found |= held
    assert same(found, wanted)
    convert_zero_checkpoint_to_fp32_state_dict(tmp_path / "ckpt", out, max_shard_size=None)
    assert [path.name for path in out.iterdir()] == ["model.safetensors"]
    assert same(load_file(out / "model.safetensors"), wanted)


def test_pickles_are_not_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"safe_serialization=False asks for files that torch\.load unpickles"):
        convert_zero_checkpoint_to_fp32_state_dict(tmp_path, tmp_path / "out", safe_serialization=False)


def test_a_model_is_filled_in_its_own_dtypes(tmp_path):
    wanted = saved(tmp_path, **BF16)
    model = Model()
    assert load_state_dict_from_zero_checkpoint(model, tmp_path) is model
    assert same(model.state_dict(), wanted)
    half = load_state_dict_from_zero_checkpoint(Model().to(torch.float64), tmp_path)
    assert torch.equal(half.first.weight, wanted["first.weight"].double())


def test_a_model_of_other_names_or_shapes_is_refused(tmp_path):
    wanted = saved(tmp_path)
    other = Model()
    other.more = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"lacks 'more.weight', 'more.bias' of the model"):
        load_state_dict_from_zero_checkpoint(other, tmp_path)
    load_state_dict_from_zero_checkpoint(other, tmp_path, strict=False)
    assert torch.equal(other.first.weight, wanted["first.weight"])
    less = Model()
    del less.frozen
    with pytest.raises(CheckpointError, match=r"holds 'frozen.bias', 'frozen.weight', which the model does not have"):
        load_state_dict_from_zero_checkpoint(less, tmp_path)
    with pytest.raises(CheckpointError, match=r"'body.0.weight' has shape \(9, 8\) in the model and \(8, 8\)"):
        load_state_dict_from_zero_checkpoint(Model(width=9), tmp_path)


def _save_sharded(folder: str) -> dict[str, torch.Tensor]:
    return saved(folder, **BF16, zero_optimization={"stage": 3, "stage3_param_persistence_threshold": 0})


def test_shards_of_two_ranks_come_together(tmp_path):
    wanted = run_ranks(_save_sharded, 2, str(tmp_path))[0]
    assert same(get_fp32_state_dict_from_zero_checkpoint(tmp_path), wanted)


class Counting:
    """A source of one large tensor, which is nowhere; notes the largest piece that was asked for."""

    path, format, strict = "nowhere", "test", True
    largest = 0

    def keys(self):
        return ["model/large", "model/scalar"]

    def shape(self, key):
        return (3000, 10_000) if key == "model/large" else ()

    def dtype(self, key):
        return torch.float32

    def value(self, name, default=None):
        return default

    def read(self, key, out, start=0):
        self.largest = max(self.largest, out.nbytes)
        out.copy_(torch.arange(start, start + out.numel()))


def test_an_export_holds_one_block(tmp_path):
    source, told = Counting(), []
    export_weights(source, tmp_path / "out", dtype=torch.bfloat16, told=told.append)
    assert source.largest == max(told) <= 16 << 20
    assert sum(told) == 2 * 3000 * 10_000 + 2
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written["scalar"].shape == ()
    assert torch.equal(written["large"].view(-1), torch.arange(30_000_000).bfloat16())


def test_an_interrupted_export_leaves_nothing_and_harms_nothing(tmp_path):
    class Broken(Counting):
        def read(self, key, out, start=0):
            if start:
                raise CheckpointError("the disk is gone")
            super().read(key, out, start)

    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_text("the last one")
    with pytest.raises(CheckpointError, match="the disk is gone"):
        export_weights(Broken(), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "model.safetensors").read_text() == "the last one"


class Crashing(Disk):
    """Stops working at its n-th change of a name."""

    def __init__(self, at: int) -> None:
        self.left = at

    def rename(self, source, target):
        self._count()
        super().rename(source, target)

    def remove(self, path):
        if path.exists():
            self._count()
        super().remove(path)

    def remove_folder(self, path):
        if self.left > 0:  # after a crash nobody cleans up
            super().remove_folder(path)

    def _count(self):
        self.left -= 1
        if self.left <= 0:
            raise OSError("crashed")


def test_whatever_a_crash_leaves_is_the_old_weights_the_new_ones_or_none(tmp_path):
    class Small(Counting):
        value_of = 1.0

        def shape(self, key):
            return (3, 4)

        def read(self, key, out, start=0):
            out.fill_(self.value_of)

    ends = set()
    for at in range(1, 12):
        out = tmp_path / str(at)
        export_weights(Small(), out, max_shard_size=50)
        source = Small()
        source.value_of = 2.0
        with contextlib.suppress(OSError):
            export_weights(source, out, max_shard_size=50, disk=Crashing(at))
        index = out / "model.safetensors.index.json"
        if not index.exists():
            ends.add("none")
            continue
        files = set(json.loads(index.read_text())["weight_map"].values())
        found = {float(tensor.mean()) for file in files for tensor in load_file(out / file).values()}
        assert found in ({1.0}, {2.0})
        ends.add(found.pop())
    assert ends == {1.0, 2.0, "none"}


def test_frozen_is_not_guessed(tmp_path):
    with pytest.raises(CheckpointError, match="does not say which parameters were frozen"):
        export_weights(Counting(), tmp_path / "out", exclude_frozen=True)


def test_what_has_no_weights_is_said(tmp_path):
    class Empty(Counting):
        def keys(self):
            return ["random/cpu/0"]

    with pytest.raises(CheckpointError, match="holds no weights"):
        export_weights(Empty(), tmp_path / "out")


def test_the_names_of_deepspeed_lead_here(tmp_path):
    from ds_core.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint as named

    assert named is get_fp32_state_dict_from_zero_checkpoint
    with pytest.raises(CheckpointError, match="no checkpoint"):
        named(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        open_source(tmp_path)
