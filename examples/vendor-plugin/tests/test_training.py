from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gpt import Gpt, batches, config, meeting, train_engine

from ds_core.testing import run_ranks


def train_plain(device: str, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    with torch.device(device):
        model = Gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for ids in batches(steps, seed=0):
        loss = model(ids.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}


def differing(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[str]:
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


def test_a_gpt_trains_to_the_bits_of_the_host() -> None:
    host, device = train_plain("cpu", 5), train_plain("openbox", 5)
    assert host[0] == device[0]
    assert host[0][-1] < host[0][0]
    assert not differing(host[1], device[1])


@pytest.mark.parametrize("precision", [{}, {"bf16": {"enabled": True}}], ids=["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("world", [1, 2])
def test_the_engine_trains_to_the_bits_of_the_host(world: int, stage: int, precision: dict[str, Any]) -> None:
    host = run_ranks(train_engine, world, "cpu", stage, **precision, **meeting())
    device = run_ranks(train_engine, world, "openbox", stage, **precision, **meeting())
    for rank in range(world):
        assert host[rank]["losses"] == device[rank]["losses"]
        assert not differing(host[rank]["params"], device[rank]["params"])
        assert device[rank]["devices"] == {"openbox"}


def continued(folder: str, accelerator: str, save: bool, load: bool) -> dict[str, torch.Tensor]:
    import ds_core
    from ds_core import comm
    from ds_core.accelerator import select

    with select(accelerator).device(0):
        model = Gpt()
    engine = ds_core.initialize(model=model, config=config(1), accelerator=accelerator)[0]
    if load:
        path, _ = engine.load_checkpoint(folder)
        assert path is not None
    steps = batches(6, seed=comm.get_rank())
    for ids in steps[engine.global_steps : 3 if save else 6]:
        engine.backward(engine(ids.to(engine.device)))
        engine.step()
    if save:
        engine.save_checkpoint(folder)
    params = {name: parameter.detach().cpu() for name, parameter in engine.module.named_parameters()}
    engine.destroy()
    return params


@pytest.mark.parametrize(("first", "then"), [("openbox", "openbox"), ("openbox", "cpu"), ("cpu", "openbox")])
def test_a_run_goes_on_from_its_checkpoint_on_either_device(tmp_path: Path, first: str, then: str) -> None:
    folder = str(tmp_path / "run")
    straight = run_ranks(continued, 2, folder, "cpu", False, False, **meeting())[0]
    run_ranks(continued, 2, folder, first, True, False, **meeting())
    for resumed in run_ranks(continued, 2, folder, then, False, True, **meeting()):
        assert not differing(straight, resumed)


def training_peak(limit_bytes: int | None) -> int:
    import ds_core
    from ds_core.accelerator import select

    accelerator = select("openbox")
    torch.openbox.set_memory_limit(limit_bytes)
    accelerator.reset_peak_memory()
    with accelerator.device(0):
        model = Gpt()
    engine = ds_core.initialize(model=model, config=config(0), accelerator="openbox")[0]
    try:
        for ids in batches(2, seed=0):
            engine.backward(engine(ids.to(engine.device)))
            engine.step()
        return int(accelerator.memory().peak_bytes or 0)
    finally:
        engine.destroy()
        torch.openbox.set_memory_limit(None)


def out_of_memory(limit_bytes: int) -> bool:
    with pytest.raises(torch.OutOfMemoryError):
        training_peak(limit_bytes)
    return True


def test_training_fits_in_its_peak_and_not_in_less() -> None:
    (peak,) = run_ranks(training_peak, 1, None, **meeting())
    assert run_ranks(training_peak, 1, peak, **meeting()) == [peak]
    assert run_ranks(out_of_memory, 1, peak - 1000, **meeting()) == [True]
