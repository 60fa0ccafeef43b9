"""Checkpoints: what is saved comes back to the bit, and what is wrong is named."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

import ds_core
from ds_core.checkpoint import CheckpointReader, latest_tag
from ds_core.errors import CheckpointError
from ds_core.testing import run_ranks


class Model(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(5)
        self.body = nn.Sequential(nn.Linear(5, width), nn.Dropout(0.3), nn.Linear(width, 2))
        self.frozen = nn.Linear(2, 2)
        self.frozen.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.frozen(self.body(self.norm(x))) ** 2).mean()


def rows() -> TensorDataset:
    return TensorDataset(torch.randn(40, 5, generator=torch.Generator().manual_seed(7)))


def build(model: nn.Module | None = None, optimizer: str = "AdamW", **changes):
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": optimizer, "params": {"lr": 1e-2}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 20, "warmup_max_lr": 0.01}},
        "seed": 11,
        **changes,
    }
    return ds_core.initialize(model=model or Model(), training_data=rows(), config=config)[0]


def state(engine) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in engine.module.state_dict().items()}


def differing(left: dict, right: dict) -> list[str]:
    return [name for name in left if not torch.equal(left[name], right[name])]


@pytest.mark.parametrize("mode", [{}, {"bf16": {"enabled": True}}, {"fp16": {"enabled": True}}])
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "Adafactor"])
def test_a_resumed_run_is_bit_equal_to_an_unbroken_one(tmp_path, mode, optimizer):
    def model() -> nn.Module:
        return Model().to({"bf16": torch.bfloat16, "fp16": torch.float16}.get(next(iter(mode), ""), torch.float32))

    def steps(engine, count: int) -> list[float]:
        return [engine.train_batch(_cast(engine)).item() for _ in range(count)]

    def _cast(engine):
        dtype = engine.module.body[0].weight.dtype
        return ((x.to(dtype),) for (x,) in engine._batches(None))

    straight = build(model(), optimizer, **mode)
    losses = steps(straight, 13)
    first = build(model(), optimizer, **mode)
    assert steps(first, 6) == losses[:6]
    first.save_checkpoint(tmp_path, client_state={"epoch": 1, "nested": {"a": [1, 2.5, None]}})
    torch.manual_seed(999)
    second = build(model(), optimizer, **mode)
    path, client = second.load_checkpoint(tmp_path)
    assert path.endswith("global_step6")
    assert client == {"epoch": 1, "nested": {"a": [1, 2.5, None]}}
    assert steps(second, 7) == losses[6:]
    assert not differing(state(straight), state(second))
    assert second.get_lr() == straight.get_lr()
    assert second.global_samples == straight.global_samples


def test_weights_alone_can_be_loaded_and_masters_follow(tmp_path):
    trained = build(bf16={"enabled": True})
    with torch.no_grad():
        for parameter in trained.module.parameters():
            parameter.add_(1)
    trained.save_checkpoint(tmp_path)
    fresh = build(bf16={"enabled": True})
    fresh.load_checkpoint(tmp_path, load_module_only=True)
    assert fresh.global_steps == 0
    assert not differing(state(trained), state(fresh))
    masters = sum(float(p.detach().sum()) for p in fresh.optimizer.param_groups[0]["params"])
    weights = sum(float(p.detach().float().sum()) for p in fresh.module.parameters() if p.requires_grad)
    assert masters == pytest.approx(weights, rel=1e-6)


def test_nothing_saved_yet_returns_none_and_changes_nothing(tmp_path, caplog):
    engine = build()
    before = state(engine)
    assert engine.load_checkpoint(tmp_path) == (None, None)
    assert not differing(before, state(engine))
    assert "no checkpoint in" in caplog.text


def test_files_are_safetensors_and_json_only_and_latest_names_the_newest(tmp_path):
    engine = build()
    engine.save_checkpoint(tmp_path)
    engine.train_batch()
    engine.save_checkpoint(tmp_path, tag="second")
    engine.save_checkpoint(tmp_path, tag="third", save_latest=False)
    engine.wait_for_checkpoint()
    assert latest_tag(tmp_path) == "second"
    names = sorted(path.name for path in (tmp_path / "second").iterdir())
    assert names == ["manifest.json", "rank-00000.safetensors"]
    manifest = json.loads((tmp_path / "second" / "manifest.json").read_text())
    assert manifest["counters"]["global_steps"] == 1
    assert not list(tmp_path.glob(".*"))


def test_keep_last_deletes_older_ones_but_never_the_latest(tmp_path):
    engine = build(checkpoint={"keep_last": 2})
    engine.save_checkpoint(tmp_path, tag="a")
    for tag in ("b", "c", "d"):
        engine.save_checkpoint(tmp_path, tag=tag, save_latest=False)
    engine.wait_for_checkpoint()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d", "latest"]


def test_a_failed_save_leaves_the_last_checkpoint_untouched(tmp_path):
    engine = build()
    engine.save_checkpoint(tmp_path, tag="good")
    with pytest.raises(CheckpointError, match=r"client_state\['model'\] \(Linear\) cannot be written as JSON"):
        engine.save_checkpoint(tmp_path, tag="good", client_state={"model": nn.Linear(1, 1)})
    assert engine.load_checkpoint(tmp_path)[1] == {}
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(CheckpointError, match="could not prepare the folder"):
        engine.save_checkpoint(blocked)


@pytest.mark.parametrize("tag", ["../up", "a/b", "", ".hidden", "a b"])
def test_tags_that_leave_the_folder_are_refused(tmp_path, tag):
    engine = build()
    with pytest.raises(CheckpointError, match="cannot name a directory"):
        engine.save_checkpoint(tmp_path, tag=tag)


def test_damage_is_named(tmp_path):
    engine = build()
    engine.save_checkpoint(tmp_path, tag="t")
    engine.wait_for_checkpoint()
    data = tmp_path / "t" / "rank-00000.safetensors"
    whole = data.read_bytes()
    data.write_bytes(whole[:-5])
    with pytest.raises(CheckpointError, match=r"rank-00000.safetensors has \d+ bytes instead of"):
        engine.load_checkpoint(tmp_path)
    data.unlink()
    with pytest.raises(CheckpointError, match=r"rank-00000.safetensors is missing"):
        engine.load_checkpoint(tmp_path)
    (tmp_path / "t" / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not the manifest"):
        engine.load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint 'u'.*there are: t"):
        engine.load_checkpoint(tmp_path, tag="u")


def test_another_model_or_optimizer_is_refused_by_name(tmp_path):
    saved = build()
    saved.save_checkpoint(tmp_path)
    saved.wait_for_checkpoint()
    with pytest.raises(CheckpointError, match=r"'body.0.weight' has shape \(9, 5\) here and \(6, 5\)"):
        build(Model(width=9)).load_checkpoint(tmp_path)
    bigger = Model()
    bigger.more = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"lacks 2 of the model's 13 .*: 'more.weight'"):
        build(bigger).load_checkpoint(tmp_path)
    build(bigger).load_checkpoint(tmp_path, load_module_strict=False, load_optimizer_states=False)
    with pytest.raises(CheckpointError, match=r"optimizer is .*Adam.*, this engine's is .*SGD"):
        build(optimizer="SGD").load_checkpoint(tmp_path)


def test_frozen_parameters_can_be_left_out(tmp_path):
    engine = build()
    engine.save_checkpoint(tmp_path, tag="t", exclude_frozen_parameters=True)
    engine.wait_for_checkpoint()
    keys = CheckpointReader(tmp_path / "t").keys()
    assert "model/frozen.weight" not in keys
    assert "model/frozen.bias" in keys
    assert "model/norm.running_mean" in keys


def test_save_16bit_model_writes_whole_weights(tmp_path):
    engine = build(bf16={"enabled": True})
    assert engine.save_16bit_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert set(weights) == set(engine.module.state_dict())
    assert torch.equal(weights["body.0.weight"], engine.module.body[0].weight)


def _save_with_rank_tags(folder: str, policy: str) -> str:
    import torch.distributed as dist

    engine = build(checkpoint={"tag_validation": policy})
    try:
        engine.save_checkpoint(folder, tag=f"rank{dist.get_rank()}")
    except CheckpointError as error:
        return str(error)
    return "saved"


def test_ranks_with_different_tags_are_found(tmp_path):
    for message in run_ranks(_save_with_rank_tags, 2, str(tmp_path), "Fail"):
        assert "rank 0: rank0, rank 1: rank1" in message
