"""Weights leave a sharded engine as transformers loads them, one gathered unit at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import ds_core
from ds_core.checkpoint import Disk, export_folder, save_weights
from ds_core.errors import CheckpointError, ConfigError
from ds_core.testing import run_ranks

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

LLAMA = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
TOKENS = torch.arange(24).view(2, 12) * 5 % 64


def model(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32)
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    elif kind == "mixtral":
        config = transformers.MixtralConfig(**LLAMA, num_local_experts=4)
    else:
        config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=kind == "tied llama")
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)


def build(module: nn.Module, *, stage: int = 3, **changes):
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
        "zero_optimization": {
            "stage": stage,
            "param_persistence_threshold": 0,
            "module_granularity_threshold": 2048,
            **changes.pop("zero", {}),
        },
        **changes,
    }
    return ds_core.initialize(model=module, config=config)[0]


def train(engine, steps: int = 2) -> None:
    for _ in range(steps):
        loss = engine(input_ids=TOKENS, labels=TOKENS).loss
        engine.backward(loss)
        engine.step()


def logits(module: nn.Module) -> torch.Tensor:
    module.eval()
    with torch.no_grad():
        return module(input_ids=TOKENS).logits


def _exported(folder: str, kind: str, bf16: bool) -> tuple[torch.dtype, torch.Tensor, torch.Tensor]:
    mode = {"bf16": {"enabled": True}} if bf16 else {}
    engine = build(model(kind, torch.bfloat16 if bf16 else torch.float32), **mode)
    train(engine)
    engine.export_hf(folder, max_shard_size="20KB")
    train(engine, 1)  # the export left nothing behind
    engine.export_hf(folder, max_shard_size="20KB")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return loaded.dtype, logits(engine.module), logits(loaded)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", ["llama", "tied llama", "gpt2", "mixtral"])
def test_from_pretrained_computes_what_two_ranks_trained(tmp_path, kind, bf16):
    for dtype, wanted, found in run_ranks(_exported, 2, str(tmp_path / "model"), kind, bf16):
        assert dtype == (torch.bfloat16 if bf16 else torch.float32)
        assert torch.equal(wanted, found)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_shards_hold_no_more_than_asked_and_the_index_names_them(tmp_path):
    run_ranks(_exported, 2, str(tmp_path), "llama", False)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert {path.name for path in files} == set(index["weight_map"].values())
    assert len(files) > 2
    total = 0
    for path in files:
        held = load_file(path)
        assert {name for name, file in index["weight_map"].items() if file == path.name} == set(held)
        size = sum(tensor.nbytes for tensor in held.values())
        assert size <= 20_000 or len(held) == 1
        total += size
    assert index["metadata"]["total_size"] == total


def _in_fp32(folder: str) -> dict[str, torch.Tensor]:
    engine = build(model("llama", torch.bfloat16), bf16={"enabled": True})
    train(engine)
    engine.export_hf(folder, dtype=torch.float32)
    from ds_core.utils import safe_get_full_fp32_param

    return {name: safe_get_full_fp32_param(p) for name, p in engine.module.named_parameters()}


def test_fp32_is_the_masters_and_is_loaded_as_such(tmp_path):
    masters = run_ranks(_in_fp32, 2, str(tmp_path))[0]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    found = dict(loaded.named_parameters())
    assert set(found) == set(masters)
    assert all(torch.equal(found[name], masters[name]) for name in masters)
    assert any(not torch.equal(value, value.bfloat16().float()) for value in masters.values())


def _replaced(folder: str) -> None:
    engine = build(model("llama"))
    engine.export_hf(folder, max_shard_size="20KB")
    engine.export_hf(folder)


def test_an_export_replaces_the_weights_of_the_last_and_keeps_other_files(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    run_ranks(_replaced, 2, str(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"README.md", "config.json", "generation_config.json", "model.safetensors"}


class Tied(nn.Module):
    """Frozen, tied and trained parameters, buffers of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(40, 40)
        self.blocks = nn.ModuleList(nn.Linear(40, 40) for _ in range(6))
        self.last = nn.Linear(40, 40, bias=False)
        self.last.weight = self.first.weight
        self.blocks[2].weight.requires_grad_(False)
        self.register_buffer("scale", torch.tensor([0.5]))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return (self.last(x) * self.scale).square().mean()


def _gathered_numel(engine) -> list[int]:
    """A list that gets the elements which are whole after each gather, as long as the engine lives."""
    from ds_zero.sharded.unit import GatherUnit, UnitState

    units = [unit for part in engine.parts if part.name == "zero" for unit in part._space.units]
    seen: list[int] = []

    class Counting(GatherUnit):
        def issue(self) -> None:
            super().issue()
            seen.append(sum(unit.numel for unit in units if unit.state is not UnitState.SHARDED))

    for unit in units:
        unit.__class__ = Counting
    return seen


def _one_unit_at_a_time(folder: str) -> tuple[list[list[int]], int]:
    engine = build(Tied())
    seen = _gathered_numel(engine)
    largest = max(unit.numel for part in engine.parts if part.name == "zero" for unit in part._space.units)
    counted = []
    for act in (
        lambda: engine.save_16bit_model(folder),
        lambda: engine.export_hf(Path(folder) / "hf", max_shard_size="10KB"),
        engine._consolidated_16bit_state_dict,
    ):
        act()
        counted.append(seen.copy())
        seen.clear()
    return counted, largest


def test_never_more_than_one_unit_is_whole_and_each_once(tmp_path):
    for counted, largest in run_ranks(_one_unit_at_a_time, 2, str(tmp_path)):
        for seen in counted:
            assert max(seen) <= largest
            assert len(seen) == 7


def _state(exclude: bool, folder: str):
    engine = build(Tied())
    with engine.gathered(list(engine.module.parameters())):
        wanted = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
    engine.save_16bit_model(folder, "w.safetensors", exclude_frozen_parameters=exclude)
    module_state = engine.module_state_dict(prefix="m.", exclude_frozen_parameters=exclude)
    found = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=exclude)
    shared = None if found is None else found["first.weight"].data_ptr() == found["last.weight"].data_ptr()
    return wanted, module_state, found, shared


@pytest.mark.parametrize("exclude", [False, True])
def test_the_first_rank_gets_a_dict_with_every_name(tmp_path, exclude):
    (wanted, module_state, found, shared), (_, _, nothing, _) = run_ranks(_state, 2, exclude, str(tmp_path))
    if exclude:
        del wanted["blocks.2.weight"]
    assert nothing is None
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert shared
    assert {name.removeprefix("m.") for name in module_state} == set(wanted)
    written = load_file(tmp_path / "w.safetensors")
    assert set(written) == set(wanted) - {"last.weight"}
    assert all(torch.equal(written[name], wanted[name]) for name in written)
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def _cannot_write(folder: str) -> str:
    engine = build(Tied())
    with pytest.raises(CheckpointError) as caught:
        engine.export_hf(Path(folder) / "file" / "below")
    engine.backward(engine(torch.ones(2, 40)))
    engine.step()
    with pytest.raises(CheckpointError, match=r"must end in .safetensors, got 'pytorch_model.bin'"):
        engine.save_16bit_model(folder, "pytorch_model.bin")
    with pytest.raises(ConfigError, match="max_shard_size takes bytes like"):
        engine.export_hf(folder, max_shard_size="big")
    return str(caught.value)


def test_a_failure_to_write_is_raised_on_all_ranks(tmp_path):
    (tmp_path / "file").write_text("")
    for message in run_ranks(_cannot_write, 2, str(tmp_path)):
        assert "rank 0 could not begin to write the weights" in message


class Full(Disk):
    """Has room for so many bytes in all."""

    def __init__(self, room_bytes: int) -> None:
        self.left = room_bytes

    def write(self, fd, view, offset):
        count = super().write(fd, view, offset)
        self.left -= count
        if self.left < 0:
            raise OSError(28, "No space left on device")
        return count


def _disk_fills_up(folder: str) -> list[str]:
    engine = build(Tied())
    messages = []
    for act in (save_weights, export_folder):
        with pytest.raises(CheckpointError) as caught:
            act(engine, Path(folder) / "new" / "model.safetensors", disk=Full(25_000))
        messages.append(str(caught.value))
    assert engine.save_16bit_model(folder, "again.safetensors")
    return messages


def test_a_disk_that_fills_up_hangs_no_rank_and_leaves_no_file(tmp_path):
    for messages in run_ranks(_disk_fills_up, 2, str(tmp_path)):
        assert all("rank 0 could not write the weights: [Errno 28]" in message for message in messages)
    assert not list((tmp_path / "new").iterdir())
    assert (tmp_path / "again.safetensors").is_file()


def _room_for_nothing(folder: str) -> str:
    class None_(Disk):
        def free_bytes(self, path):
            return 0

    with pytest.raises(CheckpointError) as caught:
        export_folder(build(Tied()), Path(folder) / "out", disk=None_())
    return str(caught.value)


def test_room_is_asked_for_first(tmp_path):
    for message in run_ranks(_room_for_nothing, 2, str(tmp_path)):
        assert "has room for 0 bytes" in message
    assert not list(tmp_path.iterdir())


def _bytes_of(folder: str, stage: int, zero: dict) -> None:
    engine = build(Tied(), stage=stage, bf16={"enabled": True}, zero=zero)
    for _ in range(2):
        engine.backward(engine(torch.linspace(-1, 1, 80).view(2, 40).bfloat16()))
        engine.step()
    engine.save_16bit_model(folder)
    engine.export_hf(Path(folder) / "fp32", dtype=torch.float32)
    engine.destroy()


def test_stages_and_offload_write_the_same_values(tmp_path):
    (tmp_path / "nvme").mkdir()
    files = {"device": "nvme", "nvme_path": str(tmp_path / "nvme")}
    ways = {
        "whole": (0, {}),
        "optimizer in shards": (1, {}),
        "all in shards": (3, {}),
        "optimizer in files": (2, {"offload_optimizer": files}),
        "all in files": (3, {"offload_optimizer": files, "offload_param": {**files, "max_in_cpu": 0}}),
    }
    written = {}
    for way, (stage, zero) in ways.items():
        run_ranks(_bytes_of, 2, str(tmp_path / way), stage, zero)
        written[way] = [load_file(tmp_path / way / sub / "model.safetensors") for sub in ("", "fp32")]
    for held in written.values():
        for mine, first in zip(held, written["whole"], strict=True):
            assert set(mine) == set(first)
            assert all(torch.equal(mine[name], first[name]) for name in mine)
    rounded, exact = written["whole"]
    assert all(torch.equal(rounded[name].bfloat16(), exact[name].bfloat16()) for name in exact)
    assert any(not torch.equal(rounded[name].float(), exact[name]) for name in exact)
