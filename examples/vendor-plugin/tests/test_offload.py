"""Offload on a device with memory of its own: the numbers of the host, two bytes a parameter, and the link counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gpt import meeting
from torch import nn

from ds_core.testing import run_ranks

WIDTH, BLOCKS, STEPS = 64, 4, 3


class Net(nn.Module):
    """Square residual layers, so that buckets and shards need no padding; `forward` gives the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(BLOCKS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x.float().square().mean()


NUMEL = BLOCKS * WIDTH * WIDTH


def make(accelerator: str, zero: dict[str, Any], **more: Any) -> Any:
    import ds_core
    from ds_core.accelerator import select

    with select(accelerator).device(0):
        model = Net()
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0.01,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1}},
        "zero_optimization": {"param_persistence_threshold": 0, **zero},
        **more,
    }
    return ds_core.initialize(model=model, config=config, accelerator=accelerator)[0]


def backwards(engine: Any, step: int) -> list[float]:
    """Forward and backward of every micro-batch of a step, the last without ``engine.step()``."""
    from ds_core import comm

    losses = []
    count = engine.gradient_accumulation_steps()
    for micro in range(count):
        generator = torch.Generator().manual_seed(100 * step + 10 * micro + comm.get_rank())
        dtype = next(engine.module.parameters()).dtype
        loss = engine(torch.randn(2, WIDTH, generator=generator).to(engine.device, dtype))
        engine.backward(loss)
        losses.append(loss.item())
        if micro + 1 < count:
            engine.step()
    return losses


def train(accelerator: str, zeros: list[dict[str, Any]], **more: Any) -> list[tuple[Any, ...]]:
    results = []
    for zero in zeros:
        engine = make(accelerator, zero, **more)
        losses = []
        for step in range(STEPS):
            losses += backwards(engine, step)
            engine.step()
        norm = engine.get_global_grad_norm()
        state = {name: tensor.detach().cpu() for name, tensor in engine.module.state_dict().items()}
        engine.destroy()
        results.append((losses, norm, state))
    return results


def differing(left: tuple[Any, ...], right: tuple[Any, ...]) -> list[str]:
    """Compares weights and losses; norms are added up by another kernel on the device."""
    assert left[0] == right[0]
    assert left[1] == pytest.approx(right[1], rel=1e-12)
    assert left[2].keys() == right[2].keys()
    return [name for name in left[2] if not torch.equal(left[2][name], right[2][name])]


@pytest.mark.parametrize("precision", [{}, {"bf16": {"enabled": True}}], ids=["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 2])
def test_the_host_updates_to_the_bits_of_a_run_on_the_host(
    tmp_path: Path, world: int, stage: int, precision: dict[str, Any]
) -> None:
    """The run on the host has no offload and updates by the same kernel."""
    files = {"device": "nvme", "nvme_path": str(tmp_path)}
    offloads: list[dict[str, Any]] = [{"offload_optimizer": {"device": "cpu"}}, {"offload_optimizer": files}]
    if stage == 3:
        offloads += [{**offload, "offload_param": {"device": "cpu"}} for offload in offloads]
        offloads += [{**offloads[1], "offload_param": {**files, "max_in_cpu": 0}}]
    zeros = [{"stage": stage, "sub_group_size": 1000, **offload} for offload in offloads]
    more = {"gradient_accumulation_steps": 3, **precision}
    host = run_ranks(train, world, "cpu", [{"stage": stage}], **more, **meeting())
    device = run_ranks(train, world, "openbox", zeros, **more, **meeting())
    for rank in range(world):
        for result in device[rank]:
            assert differing(host[rank][0], result) == []


def one_step(ratios: list[float]) -> list[torch.Tensor]:
    """All weights after one step, in the order of the model, which is that of the flat group."""
    found = []
    for ratio in ratios:
        zero = {"stage": 1, "offload_optimizer": {"device": "cpu", "ratio": ratio}}
        engine = make("openbox", zero, gradient_clipping=0.0)
        backwards(engine, 0)
        engine.step()
        found.append(torch.cat([parameter.detach().cpu().view(-1) for parameter in engine.module.parameters()]))
        engine.destroy()
    return found


def test_each_half_of_a_ratio_is_updated_where_it_lives() -> None:
    """To the bits of runs that update everything on the host, and everything on the device."""
    ((host, half, device),) = run_ranks(one_step, 1, [1.0, 0.5, 0.0], **meeting())
    middle = NUMEL // 2
    assert torch.equal(half[:middle], host[:middle])
    assert torch.equal(half[middle:], device[middle:])


def held(zero: dict[str, Any], limit_bytes: int | None = None) -> dict[str, Any]:
    """Bytes on the device between steps and between backwards, the peak, and what a step moves in each direction."""
    engine = make("openbox", zero, bf16={"enabled": True}, gradient_accumulation_steps=2)
    backwards(engine, 0)
    engine.step()
    engine.accelerator.reset_peak_memory()
    torch.openbox.set_memory_limit(limit_bytes)
    found: dict[str, Any] = {"between_steps": torch.openbox.memory_allocated()}
    x = torch.zeros(2, WIDTH, dtype=torch.bfloat16, device="openbox")
    engine.backward(engine(x + 1))
    engine.step()
    found["between_backwards"] = torch.openbox.memory_allocated() - x.nbytes
    torch.openbox.reset_traffic()
    engine.backward(engine(x + 2))
    found["gradients"] = torch.openbox.traffic()[1]
    torch.openbox.reset_traffic()
    engine.step()
    found["weights"] = torch.openbox.traffic()[0]
    found["peak"] = torch.openbox.max_memory_allocated()
    torch.openbox.set_memory_limit(None)
    engine.destroy()
    return found


def placed(device: str, **more: Any) -> dict[str, Any]:
    return {"stage": 2, "sub_group_size": 4096, "offload_optimizer": {"device": device, **more}}


@pytest.mark.parametrize("device", ["cpu", "nvme"])
def test_the_device_holds_two_bytes_a_parameter(tmp_path: Path, device: str) -> None:
    more = {"nvme_path": str(tmp_path)} if device == "nvme" else {}
    (none,) = run_ranks(held, 1, placed("none"), **meeting())
    (away,) = run_ranks(held, 1, placed(device, **more), **meeting())
    small = 2048  # numbers of the last loss and norm
    assert 14 * NUMEL <= none["between_steps"] <= 14 * NUMEL + small
    assert 16 * NUMEL <= none["between_backwards"] <= 16 * NUMEL + small
    assert 2 * NUMEL <= away["between_steps"] <= 2 * NUMEL + small
    assert 2 * NUMEL <= away["between_backwards"] <= 2 * NUMEL + small
    assert away["peak"] < none["peak"] / 3
    run_ranks(held, 1, placed(device, **more), away["peak"], **meeting())


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_the_link_carries_two_bytes_a_parameter_each_way(ratio: float) -> None:
    (found,) = run_ranks(held, 1, placed("cpu", ratio=ratio), **meeting())
    moved = 2 * ratio * NUMEL
    assert moved <= found["weights"] <= moved + 64
    if ratio == 1.0:  # a bucket that is updated in both places goes down when it is updated, and not before
        assert moved <= found["gradients"] <= moved + 64


def resident(zero: dict[str, Any]) -> int:
    engine = make("openbox", zero, bf16={"enabled": True})
    backwards(engine, 0)
    engine.step()
    found = torch.openbox.memory_allocated()
    engine.destroy()
    return int(found)


@pytest.mark.parametrize("world", [1, 2])
def test_shards_of_parameters_leave_the_device(tmp_path: Path, world: int) -> None:
    homes = [{"device": "cpu"}, {"device": "nvme", "nvme_path": str(tmp_path), "max_in_cpu": 0}]
    for home in homes:
        zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": home}
        assert max(run_ranks(resident, world, zero, **meeting())) <= 2048


def pinned(pin: bool) -> list[bool]:
    sections = {"offload_optimizer": {"device": "cpu", "pin_memory": pin}}
    sections["offload_param"] = {"device": "cpu", "pin_memory": pin}
    engine = make("openbox", {"stage": 3, **sections}, bf16={"enabled": True})
    backwards(engine, 0)
    part = next(part for part in engine.parts if part.name == "optimizer")
    tensors = [piece.master.data for piece in part.pieces]
    tensors += [piece.flat.grads(piece.span) for piece in part.pieces]
    tensors += [piece.working for piece in part.pieces]
    found = [tensor.is_pinned() for tensor in tensors if tensor.device.type == "cpu"]
    assert len(found) == len(tensors)
    engine.destroy()
    return found


@pytest.mark.parametrize("pin", [True, False])
def test_pin_memory_page_locks_what_moves(pin: bool) -> None:
    (found,) = run_ranks(pinned, 1, pin, **meeting())
    assert set(found) == {pin}


def full_values(zero: dict[str, Any]) -> list[torch.Tensor]:
    from ds_core import fragments

    engine = make("openbox", zero, bf16={"enabled": True})
    backwards(engine, 0)
    engine.step()
    found = []
    for parameter in engine.module.parameters():
        found.append(fragments.safe_get_full_fp32_param(parameter).cpu())
        found.append(fragments.safe_get_full_optimizer_state(parameter, "exp_avg").cpu())
    engine.destroy()
    return found


def test_full_values_can_be_read_wherever_they_live(tmp_path: Path) -> None:
    files = {"device": "nvme", "nvme_path": str(tmp_path)}
    ways = [{"device": "cpu"}, {"device": "cpu", "ratio": 0.3}, files]
    zeros = [{"stage": 2, "sub_group_size": 1000, "offload_optimizer": way} for way in ways]
    host, *others = (run_ranks(full_values, 2, zero, **meeting())[0] for zero in zeros)
    for other in others:
        for left, right in zip(host, other, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)
